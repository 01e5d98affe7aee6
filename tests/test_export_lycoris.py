"""What LyCORIS' own loader computes with files in kohya's form: the weights that gesso merges, of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_parts import trained
from test_formats_kohya import pipe_of

from gesso.export import Request, prepared
from gesso.formats import adapter, exporting, layout, merge, parts, tensors

ENCODERS = ("text_encoder", "text_encoder_2")
LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def layers(net: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    yield from ((name, layer) for name, layer in net.named_modules() if isinstance(layer, LAYERS))


def as_kohya_has_them(base: Path, family: str, pipe: Any) -> tuple[Any, list[Any], dict[int, str]]:
    """The UNet, the text encoders, their layers by the names that kohya's networks have, and what gesso calls each."""
    table, known = layout.unet(parts.geometry(base)), {}
    unet, encoders = torch.nn.Module(), []
    for name, layer in layers(pipe.unet):
        theirs = layout.translate(f"{name}.weight", table) if family == "sdxl" else f"{name}.weight"
        assert theirs is not None
        unet.add_module(theirs.removesuffix(".weight").replace(".", "_"), layer)
        known[id(layer)] = f"unet.{name}"
    for part in ENCODERS:
        if getattr(pipe, part, None) is not None:
            encoders.append(torch.nn.Module())
            for name, layer in layers(getattr(pipe, part)):
                plain = name.removeprefix("text_model.")
                prefix = "" if plain.startswith("text_projection") else "text_model_"
                encoders[-1].add_module(prefix + plain.replace(".", "_"), layer)
                known[id(layer)] = f"{part}.{plain}"
    return unet, encoders, known


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_lycoris_computes_what_was_trained(kind: str, family: str, blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    """Every module of the file finds its layer, text encoders' too, and alpha is not the rank."""
    base = blank if family == "sd1" else blank_xl
    source, file = trained(kind, base, tmp_path / "made"), tmp_path / "x.safetensors"
    with prepared(Request(source=str(source), base=str(base), form="kohya", out=file)) as ready:
        exporting.write(ready.trained, "kohya", file)
    pipe = pipe_of(base)
    unet, encoders, known = as_kohya_has_them(base, family, pipe)
    kohya = import_module("lycoris.kohya")
    network, _ = kohya.create_network_from_weights(
        1.0, str(file), None, encoders if family == "sdxl" else encoders[0], unet
    )
    made = [*network.unet_loras, *network.text_encoder_loras]
    assert len(made) == len({name.split(".")[0] for name in tensors.header(file).tensors})
    place = adapter.place(source)
    assert place is not None
    wanted = merge.merged(parts.read(base)[1], *adapter.read(place))
    for module in made:
        part, _, name = known[id(module.org_module[0])].partition(".")
        tensor = wanted[part].get(f"{name}.weight") or wanted[part][f"text_model.{name}.weight"]
        before = module.org_weight.detach()
        # What a LyCORIS module's forward adds; its merge of LoHa and LoKr applies the scale twice (4.1.3).
        change = module.get_weight(before.shape) if kind in ("loha", "lokr") else None
        after = before + change if change is not None else module.get_merged_weight(1.0, shape=before.shape)[0]
        np.testing.assert_allclose(after.detach().numpy(), tensor.read(), rtol=1e-5, atol=1e-6)
