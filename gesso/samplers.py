"""The schedulers that pictures are drawn with, by every name they go by.

diffusers has a class for each ("DPMSolverMultistepScheduler"), the web interfaces a short name, with the spacing of the
noise levels behind it ("DPM++ 2M Karras"). Both are read here; which noise levels a model knows is its own
configuration's matter and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from gesso.errors import RecipeError

SHORT: dict[str, tuple[str, dict[str, object]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDIM parallel": ("DDIMParallelScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "DDPM parallel": ("DDPMParallelScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "SA-Solver": ("SASolverScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""The web interfaces' names: diffusers' class, and what is set in it."""
EDM: dict[str, tuple[str, dict[str, object]]] = {
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM DPM++ 2M": ("EDMDPMSolverMultistepScheduler", {}),
}
"""The same for models of Karras et al. 2022 (playground-v2.5), whose noise levels are their own."""
SPACINGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
"""What may stand behind a name: how the noise levels are spaced."""
SPACED = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""Classes that can space their noise levels so."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A scheduler class of diffusers, and what is set in it beside the model's own configuration."""

    kind: str
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


def read(name: str, own: str = "") -> Sampler:
    """The sampler called `name`, in any spelling; `own` is the scheduler class of the model that it must fit.

    RecipeError for a name that is none, with the nearest, and for one that does not fit the model.
    """
    if name and name == own:
        return Sampler(own)
    words = name.strip().split()
    spacing = SPACINGS.get(words[-1].lower()) if len(words) > 1 else None
    known = {_plain(short): made for short, made in {**SHORT, **EDM}.items()}
    # A class under several short names is the plain one: "DPM++ 2M" stands before "DPM++ 2M SDE".
    classes: dict[str, tuple[str, dict[str, object]]] = {_plain(kind): (kind, {}) for kind, _ in known.values()}
    found = {**known, **classes}.get(_plain(" ".join(words[:-1]) if spacing else name))
    if found is None:
        raise RecipeError(_unknown(name, own), todo=f"it takes {', '.join(names(own))}")
    kind, options = found
    if own and kind.startswith("EDM") != own.startswith("EDM"):
        why = "whose noise levels are EDM's" if own.startswith("EDM") else "which is no EDM model"
        raise RecipeError(
            f'"{name}" does not fit this model, {why}', todo=f"it takes {', '.join(names(own))}, or leave it out"
        )
    if spacing and kind not in SPACED:
        raise RecipeError(f"{kind} cannot space its noise levels as {words[-1]}", todo=f"write {' '.join(words[:-1])}")
    return Sampler(kind, MappingProxyType({**options, **({spacing: True} if spacing else {})}))


def names(own: str = "") -> list[str]:
    """The short names of all that fits a model whose own scheduler class is `own`."""
    if not own:
        return [*SHORT, *EDM]
    return list(EDM if own.startswith("EDM") else SHORT)


def short(name: str) -> str:
    """What the web interfaces call a sampler; its own name where they have none."""
    if not name:
        return name
    made = read(name)
    spaced = [word.title() for word, option in SPACINGS.items() if made.options.get(option)]
    plain = {key: value for key, value in made.options.items() if key not in SPACINGS.values()}
    known = {each: options for each, (kind, options) in {**SHORT, **EDM}.items() if kind == made.kind}
    called = next((each for each, options in known.items() if options == plain), "" if plain else next(iter(known), ""))
    return " ".join([called or made.kind, *spaced])


def _plain(name: str) -> str:
    """A name without what people write differently."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("scheduler")


def _unknown(name: str, own: str) -> str:
    spelled = {_plain(each): each for each in [*names(own), *(kind for kind, _ in {**SHORT, **EDM}.values())]}
    meant = get_close_matches(_plain(name), spelled, n=1)
    hint = f'; did you mean "{spelled[meant[0]]}"?' if meant else ""
    return f'there is no scheduler "{name}"{hint}'
