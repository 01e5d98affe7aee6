"""The schedulers that pictures are drawn with, by every name they go by.

diffusers has a class for each ("DPMSolverMultistepScheduler"), the web interfaces a short name, with the spacing of the
noise levels behind it ("DPM++ 2M Karras"). Both are read here; which noise levels a model knows is its own
configuration's matter and stays.
"""

from __future__ import annotations

import re
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
    "DPM++ 2M SDE Heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
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
ALSO = {
    "DPM-Solver": "DPM++ 2M",
    "DPM-Solver++": "DPM++ 2M",
    "DPM-Solver pp": "DPM++ 2M",
    "DPM-Solver++ multistep": "DPM++ 2M",
    "DPM-Solver++ singlestep": "DPM++ 2S",
    "Euler ancestral": "Euler a",
    "DPM2 ancestral": "DPM2 a",
}
"""Names that papers and other programs have for them."""
_FLOW = "for models trained with flow matching"
_TOKENS = "for models that draw in tokens"
_BACK = "to go from a picture back to its noise"
_OWN = "for models whose noise levels are its own"
OTHERS = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "for consistency models",
    "CogVideoXDDIMScheduler": "for CogVideoX, which makes videos",
    "CogVideoXDPMScheduler": "for CogVideoX, which makes videos",
    "ConsistencyDecoderScheduler": "for consistency decoders",
    "CosineDPMSolverMultistepScheduler": "for Stable Audio, which makes sounds",
    "DDIMInverseScheduler": _BACK,
    "DDPMWuerstchenScheduler": "for Würstchen",
    "DPMSolverMultistepInverseScheduler": _BACK,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _FLOW,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "HeliosDMDScheduler": _FLOW,
    "HeliosScheduler": _FLOW,
    "IPNDMScheduler": _OWN,
    "KarrasVeScheduler": _OWN,
    "LTXEulerAncestralRFScheduler": _FLOW,
    "MiniMaxH3Scheduler": _FLOW,
    "PiflowScheduler": _FLOW,
    "RFD4ProteinaScheduler": "for proteins",
    "RePaintScheduler": "to fill a hole in a picture",
    "SCMScheduler": _FLOW,
    "ScoreSdeVeScheduler": _OWN,
    "ScoreSdeVpScheduler": _OWN,
    "UnCLIPScheduler": "for unCLIP models",
    "VQDiffusionScheduler": _TOKENS,
}
"""diffusers' other classes, and what each of them is for instead."""
NO_PICTURES = ("EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
               "PNDMScheduler")  # fmt: skip
"""Classes that take no model which predicts the picture itself (prediction_type "sample")."""
NO_MINDSPORE = {
    "DPMSolverSDEScheduler": "mindone 0.5 draws another picture with it each time, whatever the seed",
    "KDPM2AncestralDiscreteScheduler": "mindone 0.5 draws black pictures with it",
    "KDPM2DiscreteScheduler": "mindone 0.5 draws black pictures with it",
    "TCDScheduler": "mindone 0.5 does not have it",
}
"""Classes that the MindSpore engine cannot draw with, and why."""
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


def read(name: str, own: str = "", prediction: str = "") -> Sampler:
    """The sampler called `name`, in any spelling, for a model with the scheduler class `own` and its prediction type.

    RecipeError for a name that is none, with the nearest, and for one that does not fit the model.
    """
    if name and name == own:
        return Sampler(own)
    words = name.strip().split()
    spacing = SPACINGS.get(words[-1].lower()) if len(words) > 1 else None
    found = _known().get(_plain(" ".join(words[:-1]) if spacing else name))
    if found is None:
        raise _refused(name, own)
    kind, options = found
    if own and kind.startswith("EDM") != own.startswith("EDM"):
        why = "whose noise levels are EDM's" if own.startswith("EDM") else "which is no EDM model"
        raise RecipeError(
            f'"{name}" does not fit this model, {why}', todo=f"it takes {', '.join(names(own))}, or leave it out"
        )
    if prediction == "sample" and kind in NO_PICTURES:
        raise RecipeError(
            f'"{name}" does not fit this model, which predicts the picture itself (prediction type "sample")',
            todo="take DDIM, Euler, DPM++ 2M or UniPC",
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


def _known() -> dict[str, tuple[str, dict[str, object]]]:
    """Class and options by plain name; a class under several short names is the plain one, without options."""
    shorts = {**SHORT, **EDM}
    found: dict[str, tuple[str, dict[str, object]]] = {_plain(name): made for name, made in shorts.items()}
    found |= {_plain(name): shorts[other] for name, other in ALSO.items()}
    return {**found, **{_plain(kind): (kind, {}) for kind, _ in shorts.values()}}


def _plain(name: str) -> str:
    """A name without what people write differently."""
    return re.sub(r"[\s_-]", "", name.lower()).replace("dpmpp", "dpm++").removesuffix("scheduler")


def _refused(name: str, own: str) -> RecipeError:
    """What to say of a name that is none of those that draw."""
    takes = f"it takes {', '.join(names(own))}"
    others = {_plain(kind): why for kind, why in OTHERS.items()}
    if _plain(name) in others:
        return RecipeError(f'"{name}" does not fit this model: it is {others[_plain(name)]}', todo=takes)
    spelled = {_plain(each): each for each in [*names(own), *(kind for kind, _ in {**SHORT, **EDM}.values())]}
    meant = get_close_matches(_plain(name), spelled, n=1)
    hint = f'; did you mean "{spelled[meant[0]]}"?' if meant else ""
    return RecipeError(f'there is no scheduler "{name}"{hint}', todo=takes)
