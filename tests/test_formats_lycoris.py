"""LoHa and LoKr in kohya's names, the LoRA names of ComfyUI and of LyCORIS, and what `gesso inspect` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_parts import trained
from test_formats_kohya import draw, equal, pipe_of, targets

from gesso.errors import RecipeError, StorageError
from gesso.formats import adapter, identify, kohya, layout, lora_forms, lycoris, parts, tensors
from gesso.formats.metadata import Config


@pytest.fixture(params=["loha", "lokr"])
def made(request: pytest.FixtureRequest, blank_xl: Path, tmp_path: Path) -> tuple[dict[str, Any], Config]:
    return adapter.read(trained(request.param, blank_xl, tmp_path / "made"))


def test_packed_and_read_again(made: tuple[dict[str, Any], Config], blank_xl: Path) -> None:
    """Bit for bit, but for a whole second factor, which takes the scale up."""
    arrays, config = {name.replace(".text_model.", "."): a for name, a in made[0].items()}, made[1]
    config = Config.of(
        {name.replace(".text_model.", "."): size for name, size in adapter.sizes(*made).items()}, kind=config.kind
    )
    geometry = parts.geometry(blank_xl)
    packed = lycoris.pack(arrays, config, "sdxl", geometry)
    back, found = lycoris.unpack(packed, geometry)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        module = name.rpartition(".")[0]
        rank, alpha = config.size(module)
        assert alpha != rank
        if name.endswith("lokr_w2"):
            np.testing.assert_allclose(back[name], array * (alpha / rank), rtol=1e-6)
            assert found.size(module)[0] == found.size(module)[1]
        else:
            assert np.array_equal(back[name], array)
        if f"{module}.lokr_w2" not in arrays:
            assert found.size(module) == (rank, alpha)


def test_what_it_is_is_told(blank: Path, tmp_path: Path) -> None:
    for kind in lycoris.KINDS:
        arrays, config = adapter.read(trained(kind, blank, tmp_path / kind))
        packed = lycoris.pack(arrays, config, "sd1")
        tensors.save(tmp_path / f"{kind}.safetensors", packed)
        found = identify.identify(tmp_path / f"{kind}.safetensors")
        assert (found["kind"], found["form"], found["adapter"], found["problems"]) == ("adapter", "kohya", kind, [])
        assert set(found["modules"]) == {"unet", "text_encoder"}
        assert lora_forms.form_of(packed) == "kohya"
        with pytest.raises(StorageError, match="which cannot be carried over to a LoRA"):
            lora_forms.standard(packed)


def test_names_that_are_no_matrices_are_refused() -> None:
    with pytest.raises(RecipeError, match="has no oft"):
        lycoris.pack({}, Config(rank=2, alpha=2.0, kind="oft"), "sd1")
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    for side in ("lokr_w1_a", "hada_t1", "dora_scale"):
        with pytest.raises(StorageError, match="is not a matrix that gesso knows"):
            lycoris.unpack({f"{name}.{side}": np.ones((2, 2), np.float32), f"{name}.lokr_w1": np.ones((2, 2))})
    with pytest.raises(StorageError, match="an alpha without matrices"):
        lycoris.unpack({f"{name}.alpha": np.array(1.0), "lora_unet_conv_in.lokr_w1": np.ones((2, 2)),
                        "lora_unet_conv_in.lokr_w2": np.ones((2, 2))})  # fmt: skip


@pytest.mark.parametrize("form", ["lora_A", "lora_down"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_comfyuis_own_names(family: str, form: str, blank: Path, blank_xl: Path) -> None:
    """`diffusion_model.` with the original code's block names, for every family."""
    folder = blank if family == "sd1" else blank_xl
    shapes = {n: s for n, s in targets(pipe_of(folder), usual=False).items() if n.startswith("unet.")}
    arrays, sizes = draw(shapes)
    geometry = parts.geometry(folder)
    table = layout.unet(geometry)
    up = {"lora_A": "lora_B", "lora_down": "lora_up"}[form]
    other = {"lora_A.weight": f"{form}.weight", "lora_B.weight": f"{up}.weight"}
    named: dict[str, Any] = {}
    for name, array in arrays.items():
        module, _, side = name.removeprefix("unet.").partition(".lora_")
        theirs = layout.translate(f"{module}.weight", table)
        assert theirs is not None
        flat = f"diffusion_model.{theirs.removesuffix('.weight')}"
        named[f"{flat}.{other[f'lora_{side}']}"] = array
        named[f"{flat}.alpha"] = np.array(sizes[f"unet.{module}"][1], np.float32)
    assert lora_forms.form_of(named) == "comfyui"
    found = lora_forms.standard(named, geometry=geometry)
    assert equal(found.arrays, arrays)
    assert found.sizes == sizes


def test_comfyuis_names_at_their_real_sizes() -> None:
    """SD's twelve blocks are told from SDXL's nine without being told the base."""
    for geometry in (layout.SD, layout.SDXL):
        table = layout.unet(geometry)
        ends = ("attentions.1", "resnets.0.conv1", "samplers.0.conv")
        modules = sorted(name for name in table if name.endswith(ends))
        named: dict[str, Any] = {}
        for module in modules:
            named[f"diffusion_model.{table[module]}.lora_A.weight"] = np.ones((2, 3), np.float32)
            named[f"diffusion_model.{table[module]}.lora_B.weight"] = np.ones((4, 2), np.float32)
        found = lora_forms.standard(named)
        assert set(found.sizes) == {f"unet.{module}" for module in modules}


def test_the_prefix_of_lycoris(blank: Path) -> None:
    shapes = {n: s for n, s in targets(pipe_of(blank), usual=True).items() if n.startswith("unet.")}
    arrays, sizes = draw(shapes)
    packed = {name.replace("lora_unet_", "lycoris_"): a for name, a in kohya.pack(arrays, sizes, "sd1").items()}
    found = lora_forms.standard(packed)
    assert found.form == "kohya"
    assert equal(found.arrays, arrays)
    assert found.sizes == sizes
