"""`gesso convert` from the command line: every form to every other, bit for bit, read by the real loaders."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_formats_kohya import answers, draw, equal, pipe_of, targets

from gesso.cli import main
from gesso.errors import RecipeError, StorageError
from gesso.formats import lora, lora_forms, mindspore, mindspore_names, parts, single_file, stored, tensors
from gesso.formats.adapter import Config
from gesso.formats.convert import Request, convert

NAMES = {"folder": "model", "single": "model.safetensors", "mindspore": "model.ckpt"}


def bits(own: single_file.Parts) -> dict[tuple[str, str], bytes]:
    return {(part, name): bytes(stored.data(t, name)) for part, tensors_ in own.items() for name, t in tensors_.items()}


def read(path: Path) -> dict[tuple[str, str], bytes]:
    if path.is_dir():
        return bits(parts.read(path)[1])
    if path.suffix == ".ckpt":
        return bits(mindspore_names.unpack(mindspore.read(path).tensors).parts)
    return bits(single_file.unpack(stored.open_safetensors(path)).parts)


@pytest.mark.parametrize(("first", "second"), list(permutations(NAMES, 2)))
def test_each_form_of_a_model_becomes_each_other(blank: Path, tmp_path: Path, first: str, second: str) -> None:
    before = read(blank)
    source = blank
    if first != "folder":
        source = tmp_path / "first" / NAMES[first]
        source.parent.mkdir()
        convert(Request(source=blank, target=source))
    target = tmp_path / NAMES[second]
    like = ["--like", str(blank)] if second == "folder" else []
    assert main(["convert", str(source), "--to", str(target), *like]) == 0
    assert read(target) == before
    if second == "folder":
        for one, two in zip(answers(pipe_of(blank)), answers(pipe_of(target)), strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["SOURCE", "--to", "x.bin"], "are PyTorch's, which are programs"),
        (["SOURCE", "--to", "x.safetensors", "--checksum"], "--checksum is for MindSpore's checkpoints"),
        (["SOURCE", "--to", "x.safetensors", "--family", "sd1"], "--family is for LoRAs"),
        (["SOURCE", "--to", "x", "--add", "LORA", "--strength", "nan"], "the strength is nan"),
        (["LORA", "--to", "x.safetensors", "--add", "LORA", "--strength", "inf"], "the strength is inf"),
        (["LORA", "--to", "x", "--form", "kohya", "--family", "sd1"], "a LoRA is a .safetensors file"),
        (["LORA", "--to", "x.ckpt", "--family", "sd1"], "a LoRA is a .safetensors file"),
        (["LORA", "--to", "x.safetensors", "--family", "sd1", "--checksum"], "--checksum is for MindSpore"),
    ],
)
def test_what_makes_no_sense_is_said_and_nothing_is_written(
    blank: Path, tmp_path: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arrays, sizes = draw(targets(pipe_of(blank), usual=True))
    lora.write(tmp_path / "lora.safetensors", arrays, Config.of(sizes, kind="lora"))
    monkeypatch.chdir(tmp_path)
    named = {"SOURCE": str(blank), "LORA": "lora.safetensors"}
    assert main(["convert", *(named.get(word, word) for word in words)]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


def test_a_target_that_cannot_be_is_a_fault_of_storage(blank: Path) -> None:
    assert main(["convert", str(blank), "--to", "/proc/nowhere/x.safetensors"]) == 5


def test_what_was_done_is_said(blank_xl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "xl.safetensors"
    assert main(["convert", str(blank_xl), "--to", str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"{target}: SDXL, ")
    arrays = stored.open_safetensors(target)
    extra = stored.of(np.zeros(3, np.float32))
    stored.save_safetensors(tmp_path / "more.safetensors", {**arrays, "betas": extra, "model_ema.decay": extra})
    assert (
        main(["convert", str(tmp_path / "more.safetensors"), "--to", str(tmp_path / "xl"), "--like", str(blank_xl)])
        == 0
    )
    assert "left out, as no pipeline uses it: betas, model_ema.decay" in capsys.readouterr().out
    assert read(tmp_path / "xl") == read(blank_xl)


def test_v_prediction_goes_into_a_single_file_of_sdxl_and_out_of_it(blank_xl: Path, tmp_path: Path) -> None:
    folder, single = tmp_path / "m", tmp_path / "v.safetensors"
    shutil.copytree(blank_xl, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    convert(Request(source=folder, target=single))
    assert {"v_pred", "ztsnr"} <= tensors.header(single).tensors.keys()
    convert(Request(source=single, target=tmp_path / "v", like=blank_xl))
    pipe = pipe_of(tmp_path / "v")
    assert {name: pipe.scheduler.config[name] for name in changes} == changes
    loaded = type(pipe).from_single_file(str(single), config=str(folder), local_files_only=True)
    for one, two in zip(answers(pipe), answers(loaded), strict=True):
        assert np.array_equal(one, two)


def test_a_lora_goes_to_kohyas_form_and_back(
    blank_xl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = pipe_of(blank_xl)
    arrays, sizes = draw(targets(pipe, usual=False), alpha=2.5)
    run = tmp_path / "run"
    run.mkdir()
    lora.write(run, arrays, Config.of(sizes))
    theirs, ours = tmp_path / "k.safetensors", tmp_path / "back"
    like = ["--like", str(blank_xl)]
    assert main(["convert", str(run), "--to", str(theirs), "--form", "kohya", *like]) == 0
    assert "kohya's form for SDXL" in capsys.readouterr().out
    assert any(name.startswith("lora_unet_input_blocks_") for name in tensors.header(theirs).tensors)
    assert main(["convert", str(theirs), "--to", str(ours), *like]) == 0
    assert (ours / lora.FILE).read_bytes() == (run / lora.FILE).read_bytes()
    loaded = pipe_of(blank_xl)
    loaded.load_lora_weights(ours)
    pipe.load_lora_weights(run)
    assert all(np.array_equal(a, b) for a, b in zip(answers(pipe), answers(loaded), strict=True))


def test_dora_and_alphas_that_differ_are_spoken_of(blank: Path, tmp_path: Path) -> None:
    arrays, sizes = draw(targets(pipe_of(blank), usual=True), dora=True)
    lora.write(tmp_path / "own.safetensors", arrays, Config.of(sizes, kind="dora"))
    made = convert(Request(source=tmp_path / "own.safetensors", target=tmp_path / "k.safetensors", like=blank))
    assert "all modules have the alpha" in made[1]
    assert "diffusers leaves DoRA's scales out" in made[2]
    found = lora_forms.standard(tensors.load(tmp_path / "k.safetensors"))
    assert found.kind == "dora"
    for name, (rank, alpha) in sizes.items():
        new = found.sizes[name]
        assert new[0] == rank
        one, two = (a[f"{name}.lora_B.weight"].astype(np.float64) for a in (arrays, found.arrays))
        np.testing.assert_allclose(one * alpha, two * new[1], rtol=1e-6)
        assert np.array_equal(arrays[f"{name}.lora_A.weight"], found.arrays[f"{name}.lora_A.weight"])


def test_half_precision_loras_and_those_of_2023(blank: Path, tmp_path: Path) -> None:
    arrays, sizes = draw({n: s for n, s in targets(pipe_of(blank), usual=True).items() if n.endswith("to_q")})
    old = {
        name.removeprefix("unet.")
        .replace(".to_q.lora_A", ".processor.to_q_lora.down")
        .replace(".to_q.lora_B", ".processor.to_q_lora.up"): array.astype(np.float16)
        for name, array in arrays.items()
    }
    tensors.save(tmp_path / "old.safetensors", old)
    convert(Request(source=tmp_path / "old.safetensors", target=tmp_path / "new.safetensors", form="diffusers"))
    back, config = lora.read(tmp_path / "new.safetensors")
    assert equal(back, {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()})
    assert {config.size(name) for name in sizes} == {(rank, float(rank)) for rank, _ in sizes.values()}


def refused(kind: type[Exception], reason: str, **request: Any) -> None:
    with pytest.raises(kind, match=reason):
        convert(Request(**request))


def test_what_cannot_be_is_refused_and_leaves_nothing(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    single = tmp_path / "one.safetensors"
    convert(Request(source=blank, target=single))
    arrays, sizes = draw({"unet.conv_in": (32, 4, 3, 3)})
    lora.write(tmp_path / "lora.safetensors", arrays, Config.of(sizes))
    before = sorted(path.name for path in tmp_path.iterdir())
    new = tmp_path / "new"
    refused(RecipeError, "this is there already", source=blank, target=single)
    refused(RecipeError, "needs configurations and a tokenizer", source=single, target=new)
    refused(RecipeError, "a whole model, which has no form kohya", source=single, target=new, form="kohya")
    own = tmp_path / "lora.safetensors"
    refused(RecipeError, "this is a LoRA, which has no form single", source=own, target=new, form="single")
    file = tmp_path / "new.safetensors"
    refused(RecipeError, "do not tell the family", source=own, target=file, form="kohya")
    refused(RecipeError, "no pipeline and has no LoRA", source=tmp_path, target=new)
    refused(RecipeError, "1 and 2 alone, not of SDXL", source=blank_xl, target=tmp_path / "new.ckpt")
    refused(StorageError, "cannot be read", source=tmp_path / "none", target=new)
    refused(RecipeError, "of Stable Diffusion 1, the folder .* of SDXL", source=single, target=new, like=blank_xl)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_numbers_that_are_not_finite_and_cut_files_are_refused(blank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(blank, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    arrays = tensors.load(file)
    first = sorted(arrays)[0]
    tensors.save(file, {**arrays, first: np.full_like(arrays[first], np.nan)})
    refused(StorageError, f'the vae\'s "{first}" holds numbers', source=folder, target=tmp_path / "x.safetensors")
    file.write_bytes(whole[:-5])
    refused(StorageError, "may be cut off", source=folder, target=tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    piece = stored.of(np.zeros(5_000_000, np.float32))
    stored.save_safetensors(tmp_path / "a.safetensors", {f"unet.{number}": piece for number in range(20)})
    tracemalloc.start()
    mindspore.write(tmp_path / "b.ckpt", stored.open_safetensors(tmp_path / "a.safetensors"), checksum=True)
    again = mindspore.read(tmp_path / "b.ckpt")
    stored.save_safetensors(tmp_path / "c.safetensors", again.tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert again.checked
    assert stored.nbytes(again.tensors) == 400_000_000
    assert peak < 30_000_000
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
