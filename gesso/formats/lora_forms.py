"""LoRA files in any of the forms that are found, brought into one: an engine's names and each module's (rank, alpha).

    peft        unet.<module>.lora_A.weight, also with base_model.model. before it; sizes in the metadata
    diffusers   unet.<module>.lora.down.weight, text_encoder.<module>.lora_linear_layer.down.weight (to 0.23)
    processor   [unet.]<module>.processor.to_q_lora.down.weight (to 0.18): the scripts of 2023; scale 1
    kohya       lora_unet_<module>.lora_down.weight …; lycoris_<module>.… for the UNet alone
    comfyui     diffusion_model.<module in the original code's name>.lora_down.weight, or lora_A, with .alpha or without

Of these only kohya's, ComfyUI's and peft's say alpha; in the others it is the rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gesso.arrays import Array
from gesso.errors import StorageError
from gesso.formats import kohya, layout
from gesso.formats.kohya import A, B
from gesso.formats.layout import Geometry
from gesso.formats.metadata import unpack

_PEFT = re.compile(
    r"(?:base_model\.model\.)?(?P<component>unet|text_encoder(?:_2)?)\.(?P<module>.+)"
    r"\.(?P<side>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?:\.weight)?"
)
_DIFFUSERS = re.compile(
    r"(?P<component>unet|text_encoder(?:_2)?)\.(?P<module>.+?)\.(?:lora|lora_linear_layer)\.(?P<side>down|up)\.weight"
)
_PROCESSOR = re.compile(
    r"(?:(?P<component>unet|text_encoder(?:_2)?)\.)?(?P<module>.+?)(?:\.processor)?"
    r"\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<side>down|up)\.weight"
)
_COMFYUI = re.compile(
    r"diffusion_model\.(?P<module>.+)\.(?:(?P<side>lora_A|lora_B|lora_down|lora_up)\.weight|(?P<other>alpha|dora_scale))"
)
_KOHYAS = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
_ONLY_SD = re.compile(r"diffusion_model\.(?:input|output)_blocks\.(?:9|1[01])\.")
"""SD 1 and 2 have twelve blocks each way, SDXL nine."""
_SIDES = {"down": A, "up": B}
_TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
FORMS = {"comfyui": _COMFYUI, "peft": _PEFT, "diffusers": _DIFFUSERS, "processor": _PROCESSOR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA in an engine's names: arrays, (rank, alpha) by `<component>.<module>`, and the form that it came in."""

    arrays: Mapping[str, Array]
    sizes: kohya.Sizes
    form: str

    @property
    def kind(self) -> str:
        """lora or dora."""
        return "dora" if any(name.endswith(kohya.MAGNITUDE) for name in self.arrays) else "lora"


def form_of(names: Mapping[str, object]) -> str | None:
    """ "peft", "diffusers", "processor", "comfyui" or "kohya"; None for names of none or of several."""
    if not names:
        return None
    if kohya.is_one(names):
        return "kohya"
    return next((form for form, rule in FORMS.items() if all(rule.fullmatch(name) for name in names)), None)


def standard(
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    geometry: Geometry = layout.SDXL,
    path: Path | None = None,
) -> Lora:
    """The LoRA in these arrays; `metadata` is the file's, `geometry` the UNet's where kohya counts blocks through.

    Raises StorageError for names of no known form, and for a LoRA that is not whole.
    """
    form = form_of(arrays)
    if form is None:
        odd = next((n for n in arrays if not any(rule.fullmatch(n) for rule in FORMS.values())), "nothing in it")
        raise StorageError(f'this is not a LoRA in a form that gesso knows: "{odd}"', where=str(path or ""))
    if form == "kohya":
        made, sizes = kohya.unpack(arrays, geometry)
        return Lora(arrays=made, sizes=sizes, form=form)
    if form == "comfyui":
        made, sizes = kohya.unpack(_in_kohyas(arrays, geometry), geometry)
        return Lora(arrays=made, sizes=sizes, form=form)
    renamed: dict[str, Array] = {}
    for name, array in arrays.items():
        own = own_name(name, form)
        if own in renamed:
            raise StorageError(f'"{name}" and another name mean the same matrix', where=str(path or ""))
        renamed[own] = array
    own_ranks = kohya.ranks(renamed)
    modules: dict[str, list[str]] = {}
    for name in own_ranks:
        component, _, module = name.partition(".")
        modules.setdefault(component, []).append(module)
    known = unpack(metadata or {}, modules, path or Path("the LoRA")) if form == "peft" else {}
    alphas = {
        f"{component}.{module}": own[1] for component, shape in known.items() for module, own in shape.sizes.items()
    }
    return Lora(
        arrays=renamed,
        sizes={name: (rank, alphas.get(name, float(rank))) for name, rank in own_ranks.items()},
        form=form,
    )


def own_name(name: str, form: str) -> str:
    """An engine's name of a matrix in peft's, diffusers' or the processors' form."""
    found = FORMS[form].fullmatch(name)
    assert found is not None
    component = found["component"] or "unet"
    module = found["module"].removeprefix("text_model.") if component != "unet" else found["module"]
    side = _SIDES.get(found["side"], found["side"])
    if form == "processor":
        layer = found["layer"]
        module += f".{_TEXT_LAYERS[layer] if component != 'unet' else {'to_out': 'to_out.0'}.get(layer, layer)}"
    return f"{component}.{module}.{side}"


def _in_kohyas(arrays: Mapping[str, Array], geometry: Geometry) -> dict[str, Array]:
    """ComfyUI's names in kohya's; the original code's block names are those of any family."""
    if geometry == layout.SDXL and any(_ONLY_SD.match(name) for name in arrays):
        geometry = layout.SD
    table = layout.inverse(layout.unet(geometry))
    made: dict[str, Array] = {}
    for name, array in arrays.items():
        found = _COMFYUI.fullmatch(name)
        assert found is not None
        ours = layout.translate(f"{found['module']}.weight", table)
        if ours is None:
            raise StorageError(
                f'the UNet has no "{found["module"]}"',
                todo="name the folder of the LoRA's base model with --like, if it is not of the usual size",
            )
        side = found["other"] or _KOHYAS.get(found["side"], f"{found['side']}.weight")
        new = f"lora_unet_{ours.removesuffix('.weight').replace('.', '_')}.{side}"
        if new in made:
            raise StorageError(f'"{name}" and another name mean the same matrix')
        made[new] = array
    return made
