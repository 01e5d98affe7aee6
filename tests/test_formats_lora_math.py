"""Merging, joining, cutting and extracting LoRAs, against peft, diffusers, torch and plain linear algebra."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_formats_kohya import answers, draw, pipe_of, targets

from gesso.cli import main
from gesso.errors import NumbersError, RecipeError
from gesso.formats import lora, lora_math, parts, stored, tensors
from gesso.formats.adapter import Config
from gesso.formats.convert import Request, convert
from gesso.formats.kohya import MAGNITUDE, A, B
from gesso.formats.lora_forms import Lora

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def write(path: Path, arrays: Any, sizes: Any, kind: str = "lora") -> Path:
    lora.write(path, arrays, Config.of(sizes, kind=kind))
    return path


def change(found: Lora, module: str) -> np.ndarray:
    rank, alpha = found.sizes[module]
    up, down = (found.arrays[f"{module}.{side}"].astype(np.float64) for side in (B, A))
    return alpha / rank * up.reshape(len(up), -1) @ down.reshape(rank, -1)


def same_answers(one: Any, two: Any) -> None:
    for first, second in zip(answers(one), answers(two), strict=True):
        np.testing.assert_allclose(first, second, **CLOSE)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_model_draws_what_diffusers_draws_with_the_lora(blank: Path, tmp_path: Path, kind: str) -> None:
    plain, loaded = pipe_of(blank), pipe_of(blank)
    arrays, sizes = draw(targets(plain, usual=False), dora=kind == "dora")
    file = write(tmp_path / "x.safetensors", arrays, sizes, kind)
    out = tmp_path / "merged"
    assert main(["convert", str(blank), "--add", str(file), "--strength", "0.6", "--to", str(out)]) == 0
    loaded.load_lora_weights(file, adapter_name="x")
    loaded.set_adapters(["x"], 0.6)
    same_answers(pipe_of(out), loaded)
    assert max(np.abs(a - b).max() for a, b in zip(answers(plain), answers(loaded), strict=True)) > 0.01
    untouched = {name for name in parts.read(blank)[1]["unet"] if f"unet.{name.removesuffix('.weight')}" not in sizes}
    before, after = (parts.read(folder)[1]["unet"] for folder in (blank, out))
    assert all(stored.data(before[name], name) == stored.data(after[name], name) for name in untouched)


@pytest.mark.filterwarnings("ignore:Already found a:UserWarning")
def test_loras_joined_are_both_at_their_strengths(blank: Path, tmp_path: Path) -> None:
    pipe, joined = pipe_of(blank), pipe_of(blank)
    shapes = targets(pipe, usual=True)
    one = draw({name: shape for name, shape in shapes.items() if "attn1" in name or "self_attn" in name})
    two = draw(
        {name: shape for name, shape in shapes.items() if name not in one[1] or "q_proj" in name or "to_q" in name}
    )
    files = [write(tmp_path / f"{number}.safetensors", *each) for number, each in enumerate((one, two))]
    out = tmp_path / "both.safetensors"
    assert main(["convert", str(files[0]), "--add", str(files[1]), "--strength=-0.7", "--to", str(out)]) == 0
    for name, file in zip("ab", files, strict=True):
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters(["a", "b"], [1.0, -0.7])
    joined.load_lora_weights(out)
    same_answers(pipe, joined)
    merged = tmp_path / "merged"
    convert(Request(source=blank, target=merged, add=((files[0], 1.0), (files[1], -0.7))))
    same_answers(pipe, pipe_of(merged))


def test_a_cut_lora_is_the_best_of_its_rank(blank: Path, tmp_path: Path) -> None:
    arrays, sizes = draw(targets(pipe_of(blank), usual=False))
    whole = Lora(arrays=arrays, sizes=sizes, form="peft")
    same, kept = lora_math.resized(whole, 9)
    assert kept == 1
    assert {module: rank for module, (rank, _) in same.sizes.items()} == {
        module: min(rank, *change(whole, module).shape) for module, (rank, _) in sizes.items()
    }
    cut, share = lora_math.resized(whole, 2)
    total = lost = 0.0
    for module in sizes:
        exact, near = change(whole, module), change(cut, module)
        np.testing.assert_allclose(change(same, module), exact, rtol=1e-4, atol=1e-5)
        s = np.linalg.svd(exact, compute_uv=False)
        np.testing.assert_allclose(np.linalg.norm(exact - near), np.linalg.norm(s[2:]), rtol=1e-4, atol=1e-4)
        total, lost = total + (s**2).sum(), lost + (s[2:] ** 2).sum()
        assert cut.arrays[f"{module}.{A}"].shape[1:] == arrays[f"{module}.{A}"].shape[1:]
    assert share == pytest.approx(1 - lost / total, rel=1e-6)
    assert 0.5 < share < 1
    file = write(tmp_path / "x.safetensors", arrays, sizes)
    made = convert(Request(source=file, target=tmp_path / "small.safetensors", rank=2))
    assert f"it keeps {share:.1%} of the squared change" in made
    assert {rank for rank, _ in lora_math_sizes(tmp_path / "small.safetensors")} == {2}


def lora_math_sizes(path: Path) -> list[tuple[int, float]]:
    arrays, config = lora.read(path)
    return [config.size(name.removesuffix(f".{A}")) for name in arrays if name.endswith(A)]


def test_what_was_merged_is_extracted_again(blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, sizes = draw(targets(pipe_of(blank), usual=False))
    file = write(tmp_path / "x.safetensors", arrays, sizes)
    tuned, out = tmp_path / "tuned", tmp_path / "lora.safetensors"
    convert(Request(source=blank, target=tuned, add=((file, 1.0),)))
    norm = tuned / "unet" / "diffusion_pytorch_model.safetensors"
    values = tensors.load(norm)
    tensors.save(norm, {**values, "conv_norm_out.weight": values["conv_norm_out.weight"] + 1}, {"format": "pt"})
    flags = ["--minus", str(blank), "--rank", "4", "--to", str(out)]
    assert main(["convert", str(tuned), *flags]) == 0
    said = capsys.readouterr().out
    assert "it holds 100.0% of the squared change" in said
    assert "changed, but not for a LoRA to hold: unet.conv_norm_out.weight" in said
    found, config = lora.read(out)
    own = {name.removesuffix(f".{A}").replace(".text_model.", "."): config for name in found if name.endswith(A)}
    assert own.keys() == sizes.keys()
    plain, loaded = pipe_of(blank), pipe_of(blank)
    plain.load_lora_weights(file)
    loaded.load_lora_weights(out)
    same_answers(plain, loaded)


@pytest.mark.parametrize(("code", "kind"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_merging_rounds_to_the_models_type_as_torch_does(code: str, kind: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, 4000).astype(np.float32).astype(np.float64)
    values[:4] = [0.0, -0.0, 1.00390625, 2.0**-20]
    made = lora_math.narrowed(values, code, "x")
    assert made.dtype == np.dtype(stored.TYPES[code])
    expected = torch.from_numpy(values).float().to(kind).view(torch.int32 if code == "F32" else torch.int16).numpy()
    assert np.array_equal(made.view(expected.dtype), expected)
    if code != "F32":
        with pytest.raises(NumbersError, match=f"x becomes too large for its type {code}"):
            lora_math.narrowed(np.array([1e39 if code == "BF16" else 1e6]), code, "x")


def test_half_precision_models_stay_so_when_merged(blank: Path) -> None:
    own = parts.read(blank)[1]
    arrays, sizes = draw({"unet.conv_in": own["unet"]["conv_in.weight"].shape})
    half = own["unet"]["conv_in.weight"].widened().astype("<f2")
    small = {**own, "unet": {**own["unet"], "conv_in.weight": stored.of(half)}}
    made = lora_math.merged(small, Lora(arrays=arrays, sizes=sizes, form="peft"), 1.0)["unet"]["conv_in.weight"]
    exact = half.astype(np.float64) + change(Lora(arrays=arrays, sizes=sizes, form="peft"), "unet.conv_in").reshape(
        half.shape
    )
    assert made.code == "F16"
    assert np.array_equal(made.read(), exact.astype("<f2"))


def refused(reason: str, **request: Any) -> None:
    with pytest.raises(RecipeError, match=reason):
        convert(Request(**request))


def test_what_makes_no_sense_is_refused(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    shapes = targets(pipe_of(blank), usual=True)
    plain = write(tmp_path / "lora.safetensors", *draw(shapes))
    dora = write(tmp_path / "dora.safetensors", *draw(shapes, dora=True), kind="dora")
    same, new = tmp_path / "same", tmp_path / "new"
    shutil.copytree(blank, same)
    refused("the LoRA is for another base", source=blank_xl, target=new, add=((plain, 1.0),))
    refused("a DoRA is no sum of matrices", source=dora, target=new, rank=2)
    refused("a DoRA is no sum of matrices", source=plain, target=new, add=((dora, 1.0),))
    refused("a DoRA is no sum of matrices", source=blank, target=new, add=((plain, 1.0), (dora, 1.0)))
    refused("no layer that a LoRA can hold differs", source=same, target=new, minus=blank, rank=4)
    refused("not two models of one family", source=same, target=new, minus=blank_xl, rank=4)
    refused("not two models of one family", source=same, target=new, minus=plain, rank=4)
    refused("becomes a LoRA of some rank", source=same, target=new, minus=blank)
    refused("not both at once", source=same, target=new, minus=blank, rank=2, add=((plain, 1.0),))
    refused("a whole model has no rank", source=same, target=new, rank=2)
    refused("must be at least 1", source=plain, target=new, rank=0)
    refused("from which no model can be taken away", source=plain, target=new, minus=blank, rank=2)
    assert main(["convert", str(blank), "--to", str(new), "--strength", "1"]) == 2
    assert not new.exists()


def test_a_lora_with_no_change_at_all_can_be_cut() -> None:
    zero = {
        f"unet.conv_in.{A}": np.ones((4, 3, 1, 1), np.float32),
        f"unet.conv_in.{B}": np.zeros((5, 4, 1, 1), np.float32),
    }
    found, kept = lora_math.resized(Lora(arrays=zero, sizes={"unet.conv_in": (4, 8.0)}, form="peft"), 2)
    assert kept == 1
    assert not change(found, "unet.conv_in").any()
    assert MAGNITUDE not in "".join(found.arrays)
