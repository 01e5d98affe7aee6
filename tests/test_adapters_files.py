"""Adapters on the disk: diffusers or peft loads what gesso writes, gesso what they write, and each does the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict

from gesso import generate
from gesso.arrays import Array
from gesso.engines.engine import Adapter, Rule
from gesso.engines.layers import settle
from gesso.engines.torch import adapters, loras
from gesso.engines.torch.models import Models
from gesso.errors import RecipeError, StorageError
from gesso.families import find
from gesso.formats import adapter as files
from gesso.formats import lora, peft, pipeline, tensors
from gesso.formats.metadata import Config

PARTS = ("unet", "text_encoder", "text_encoder_2")
FAMILY = find("StableDiffusionXLPipeline")
OTHERS = ("loha", "lokr", "oft")
RULES = (
    Rule(match="mid_block.*", rank=2),
    Rule(match="text_encoder_2.*", rank=3, alpha=5.0),
    Rule(match="text_encoder.*layers.1.*", alpha=2.0),
    Rule(match="up_blocks.*to_k", skip=True),
)


def described(kind: str) -> Adapter:
    conv = () if kind == "oft" else ("conv1", "conv_in")
    return Adapter(
        kind=kind,
        rank=4,
        alpha=4.0 if kind == "oft" else 6.0,
        targets={
            "unet": ("to_q", "to_k", "proj_in", "conv_shortcut", *conv),
            "text_encoder": ("q_proj", "fc1"),
            "text_encoder_2": ("q_proj", "text_projection"),
        },
        rules=RULES[-1:] if kind == "oft" else RULES,
        factor=4,
    )


@torch.no_grad()
def answers(nets: Mapping[str, Any]) -> dict[str, Array]:
    """What each network makes of the same inputs."""
    draw = torch.Generator().manual_seed(5)
    unet = nets["unet"].eval()
    x, text = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 7, 80, generator=draw)
    added = {"text_embeds": torch.randn(2, 40, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
    found = {"unet": unet(x, torch.tensor([10, 700]), text, added_cond_kwargs=added).sample}
    for part in PARTS[1:]:
        out = nets[part].eval()(torch.arange(1, 9)[None])
        found[part] = out.last_hidden_state if part == "text_encoder" else out.text_embeds
    return {part: value.numpy() for part, value in found.items()}


def pipe_of(folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)


def trained(kind: str, folder: Path) -> tuple[dict[str, Array], Config, dict[str, Array]]:
    """An adapter on all three networks with random values, as an engine names them; its configuration; its answers."""
    pipe, adapter = pipe_of(folder), described(kind)
    nets = {part: getattr(pipe, part) for part in PARTS}
    adapters.attach(nets, adapter)
    draw = torch.Generator().manual_seed(3)
    arrays = {}
    for part, net in nets.items():
        for name, value in net.named_parameters():
            if value.requires_grad:
                value.data = (value.data if "magnitude" in name else 0) + 0.2 * torch.randn(value.shape, generator=draw)
                arrays[f"{part}.{adapters.public_name(name)}"] = value.detach().numpy().copy()
    layers = {module: settle(adapter, *module.split(".", 1)) for module in files.modules(arrays)}
    sizes = {module: (layer.rank, layer.alpha) for module, layer in layers.items()}
    return arrays, Config.of(sizes, kind=kind, factor=adapter.factor), answers(nets)


def written(folder: Path, arrays: Mapping[str, Array], config: Config) -> Path:
    for name, write in files.writers(arrays, config).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    return folder


def sampled(base: Path, *paths: tuple[Path, float]) -> dict[str, Array]:
    """The answers of the networks of gesso's own sampling with adapters."""
    models = Models(base, torch.device("cpu"), {}, {})
    for at, (path, strength) in enumerate(paths):
        loras.add(models, FAMILY, path, name=f"lora{at}", strength=strength)
    return answers({part: models.get(part) for part in PARTS})


def same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for part, value in expected.items():
        np.testing.assert_allclose(found[part], value, rtol=0, atol=1e-6 * max(1.0, float(np.abs(value).max())))


@pytest.fixture(scope="module")
def untouched(blank_xl: Path) -> dict[str, Array]:
    return answers(vars(pipe_of(blank_xl)))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_diffusers_and_gesso_load_the_file(
    kind: str, blank_xl: Path, tmp_path: Path, untouched: Mapping[str, Array]
) -> None:
    arrays, config, expected = trained(kind, blank_xl)
    written(tmp_path, arrays, config)
    assert [path.name for path in tmp_path.iterdir()] == [lora.FILE]
    pipe = pipe_of(blank_xl)
    pipe.load_lora_weights(tmp_path, adapter_name="gesso")
    plain = answers(vars(pipe))
    same(plain, expected)
    assert all(np.abs(plain[part] - untouched[part]).max() > 1e-2 for part in PARTS)
    same(sampled(blank_xl, (tmp_path / lora.FILE, 1.0)), expected)

    pipe.set_adapters("gesso", 0.5)
    half = answers(vars(pipe))
    same(sampled(blank_xl, (tmp_path, 0.5)), half)
    assert all(np.abs(plain[part] - half[part]).max() > 1e-3 for part in PARTS)

    found, again = lora.read(tmp_path)
    known = files.renamed(found, arrays)
    assert known.keys() == arrays.keys()
    assert all(np.array_equal(known[name], arrays[name]) for name in arrays)
    assert sorted(files.sizes(found, again).values()) == sorted(files.sizes(arrays, config).values())


def test_the_metadata_holds_only_what_old_peft_takes(blank_xl: Path, tmp_path: Path) -> None:
    arrays, config, _ = trained("dora", blank_xl)
    written(tmp_path, arrays, config)
    fields = json.loads(tensors.header(tmp_path / lora.FILE).metadata["lora_adapter_metadata"])
    # Every one is an argument of LoraConfig in peft 0.15.0.
    known = {"alpha_pattern", "bias", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_dora"}
    assert {key.split(".", 1)[1] for key in fields} == known | {"use_rslora"}


@pytest.mark.parametrize("kind", OTHERS)
def test_peft_and_gesso_load_the_folders(
    kind: str, blank_xl: Path, tmp_path: Path, untouched: Mapping[str, Array]
) -> None:
    arrays, config, expected = trained(kind, blank_xl)
    written(tmp_path, arrays, config)
    names = [
        f"{part}/{name}" for part in sorted(PARTS) for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == names
    pipe = pipe_of(blank_xl)
    for part in PARTS:
        PeftModel.from_pretrained(getattr(pipe, part), str(tmp_path / part))
    plain = answers(vars(pipe))
    same(plain, expected)
    assert all(np.abs(plain[part] - untouched[part]).max() > 1e-2 for part in PARTS)
    same(sampled(blank_xl, (tmp_path, 1.0)), expected)

    found, again = files.read(tmp_path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert (again.kind, again.factor) == (kind, 4 if kind == "lokr" else -1)
    assert files.sizes(found, again) == files.sizes(arrays, config)


def test_gesso_loads_what_peft_saves(blank_xl: Path, tmp_path: Path) -> None:
    arrays, config, expected = trained("loha", blank_xl)
    written(tmp_path / "ours", arrays, config)
    pipe = pipe_of(blank_xl)
    for part in PARTS:
        PeftModel.from_pretrained(getattr(pipe, part), str(tmp_path / "ours" / part)).save_pretrained(
            str(tmp_path / "theirs" / part)
        )
    same(sampled(blank_xl, (tmp_path / "theirs", 1.0)), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_gesso_loads_what_diffusers_saves(dora: bool, blank_xl: Path, tmp_path: Path) -> None:
    pipe = pipe_of(blank_xl)
    more: dict[str, Any] = {"use_dora": dora, "init_lora_weights": False}
    torch.manual_seed(0)
    pipe.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], rank_pattern={"attn2.to_q": 2}, **more)
    )
    for part, alpha in (("text_encoder", 3), ("text_encoder_2", 5)):
        getattr(pipe, part).add_adapter(
            LoraConfig(
                r=3,
                lora_alpha=alpha,
                target_modules=["q_proj", "k_proj"],
                rank_pattern={r"layers.0.self_attn.q_proj": 2},
                alpha_pattern={"k_proj": 1},
                **more,
            )
        )
    nets = {part: getattr(pipe, part) for part in PARTS}
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(net) for part, net in nets.items()}
    pipe.save_lora_weights(tmp_path, **layers, **_collate_lora_metadata(nets))
    same(sampled(blank_xl, (tmp_path, 1.0)), answers(nets))


def test_adapters_of_several_kinds_add_up(blank_xl: Path, tmp_path: Path, untouched: Mapping[str, Array]) -> None:
    paths: list[tuple[Path, float]] = []
    pipe = pipe_of(blank_xl)
    weights = {part: {n: v.detach().clone() for n, v in getattr(pipe, part).named_parameters()} for part in PARTS}
    for kind, strength in (("lora", 0.5), ("loha", -0.25), ("lokr", 0.75), ("lora", 0.25)):
        arrays, config, _ = trained(kind, blank_xl)
        paths.append((written(tmp_path / f"{kind}{len(paths)}", arrays, config), strength))
        alone = pipe_of(blank_xl)
        nets = {part: getattr(alone, part) for part in PARTS}
        adapters.attach(nets, described(kind))
        for part, net in nets.items():
            for name, value in net.named_parameters():
                if value.requires_grad:
                    value.data = torch.from_numpy(arrays[f"{part}.{adapters.public_name(name)}"])
            for name, layer in net.named_modules():
                if isinstance(layer, BaseTunerLayer):
                    weights[part][f"{name}.weight"] += strength * layer.get_delta_weight("default").detach()
    for part in PARTS:
        getattr(pipe, part).load_state_dict(weights[part], strict=False)
    expected = answers(vars(pipe))
    found = sampled(blank_xl, *paths)
    for part in PARTS:
        np.testing.assert_allclose(found[part], expected[part], rtol=0, atol=1e-4 * np.abs(expected[part]).max())
        assert np.abs(expected[part] - untouched[part]).max() > 1e-2


# ---------------------------------------------------------------- what is refused


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {f"{part}.{name}": shape for part in PARTS for name, shape in pipeline.shapes(folder / part).items()}


@pytest.mark.parametrize("kind", ["lora", "dora", *OTHERS])
def test_what_fits_is_told_from_what_does_not(kind: str, blank_xl: Path) -> None:
    arrays, config, _ = trained(kind, blank_xl)
    assert files.fit(arrays, config, shapes(blank_xl)) == []
    known = shapes(blank_xl)
    place = next(module for module in files.modules(arrays) if module.endswith("to_q"))
    wider = {**known, f"{place}.weight": (known[f"{place}.weight"][0], known[f"{place}.weight"][1] + 64)}
    (wrong,) = files.fit(arrays, config, wider)
    assert place in wrong
    del known[f"{place}.weight"]
    assert files.fit(arrays, config, known)[0].endswith(f"the base has no layer {place}")


def changed(folder: Path, **fields: object) -> None:
    path = folder / "unet" / peft.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def spoiled(folder: Path) -> Iterator[tuple[str, str]]:
    """Each damage to a folder of a LoKr with what is said of it; the folder is mended in between."""
    config, weights = folder / "unet" / peft.CONFIG, folder / "unet" / peft.WEIGHTS
    whole, described = weights.read_bytes(), config.read_text()
    arrays = tensors.load(weights)
    name = next(name for name in arrays if name.endswith("lokr_w1"))
    for values, said in (
        ({key: value for key, value in arrays.items() if key != name}, r"is not whole: it has lokr_w2"),
        ({**arrays, name: np.full_like(arrays[name], np.nan)}, "numbers that are not finite"),
        ({**arrays, "base_model.model.a.other": arrays[name]}, "is not the name of a matrix of loha, lokr, oft"),
        ({**arrays, "base_model.model.a.hada_w1_a": arrays[name]}, "the lokr adapter of .* is not whole"),
    ):
        tensors.save(weights, values)
        yield said, ""
    weights.write_bytes(whole)
    for fields, said in (
        ({"decompose_both": True}, "uses decompose_both, which gesso cannot carry over"),
        ({"peft_type": "IA3"}, "this is not an adapter of the kinds loha, lokr, oft"),
        ({"rank_pattern": {"(": 3}}, "the adapter's sizes cannot be read"),
        ({"r": "many"}, "the adapter's sizes cannot be read"),
    ):
        changed(folder, **fields)
        yield said, ""
        config.write_text(described)
    config.write_text("{")
    yield "this is not JSON", ""
    config.write_text(described)
    weights.write_bytes(whole[:-10])
    yield "lies outside the file", ""


def test_a_damaged_folder_is_refused(blank_xl: Path, tmp_path: Path) -> None:
    arrays, config, _ = trained("lokr", blank_xl)
    written(tmp_path, arrays, config)
    for said, _ in spoiled(tmp_path):
        with pytest.raises(StorageError, match=said):
            files.read(tmp_path)


def test_parts_of_two_kinds_are_refused(blank_xl: Path, tmp_path: Path) -> None:
    for kind, part in (("loha", "unet"), ("lokr", "text_encoder")):
        arrays, config, _ = trained(kind, blank_xl)
        written(tmp_path, {name: value for name, value in arrays.items() if name.startswith(f"{part}.")}, config)
    with pytest.raises(StorageError, match=r"of 2 kinds \(loha, lokr\), must be of one"):
        files.read(tmp_path)


def test_an_oft_has_no_strength(blank_xl: Path, tmp_path: Path) -> None:
    arrays, config, _ = trained("oft", blank_xl)
    written(tmp_path, arrays, config)
    with pytest.raises(RecipeError, match="no strength between nothing and all"):
        sampled(blank_xl, (tmp_path, 0.5))
    asked = generate.Request(
        model=str(blank_xl), prompts=("a cat",), out=tmp_path / "pics", loras=(tmp_path,), strengths=(0.5,), steps=2
    )
    with pytest.raises(RecipeError, match="no strength between nothing and all"):
        generate.prepare(asked)
