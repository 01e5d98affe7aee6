"""`gesso export` of real runs: the same pictures in plain diffusers, cards and metadata without paths, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_parts import trained
from runs import pictures
from test_formats_kohya import pipe_of
from torch_runs import LORA, PROMPT, drawn, go, pixels, plain, torch_recipe

from gesso.arrays import Picture
from gesso.cli import main
from gesso.errors import Exit, NumbersError, RecipeError, StorageError
from gesso.export import Request, export
from gesso.export import check as export_check
from gesso.formats import adapter, exporting, lora, modelspec, png, stored, tensors

CARD = "---\nlicense: other\nlicense_name: tiny\n---\n# base\n"


@pytest.fixture(scope="module")
def base(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private-place") / "base"
    shutil.copytree(blank, folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of a LoRA with alpha unlike its rank, and one of the whole UNet."""
    made = {}
    for name, table in (("lora", LORA), ("none", {"kind": "none"})):
        folder = tmp_path_factory.mktemp(f"run-{name}")
        pictures(folder / "pictures", captions=False)
        data: Any = [{"path": str(folder / "pictures"), "prompt": "a photo of sks thing"}]
        path = torch_recipe(folder, base, adapter=table, data=data)
        assert go(path) == 0
        made[name] = folder / "out"
    return made


def preview(run: Path) -> Picture:
    """What gesso itself drew at the end."""
    return pixels(max(run.glob("samples/step-*/p00-s7.png"), key=lambda path: int(path.parent.name[5:])))


@pytest.mark.parametrize(("name", "form"), [
    ("lora", "lora"), ("lora", "kohya"), ("lora", "folder"), ("lora", "single"), ("none", "folder"), ("none", "single"),
])  # fmt: skip
def test_plain_diffusers_draws_the_preview(
    name: str, form: str, runs: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Equal pixels where no weight was rounded, one level of 255 where a LoRA was merged."""
    done = export(Request(source=str(runs[name]), form=form, out=tmp_path / "out"))
    if form == "folder":
        pipe = plain(tmp_path / "out")
    elif form == "single":
        kind: Any = type(plain(base))
        pipe = kind.from_single_file(str(tmp_path / "out" / "out.safetensors"), config=str(base), local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
    else:
        pipe = plain(base)
        pipe.load_lora_weights(tmp_path / "out", weight_name=done.files[-1].name)
    apart = np.abs(drawn(pipe).astype(int) - preview(runs[name]).astype(int))
    assert apart.max() <= 1
    assert done.apart < 1e-5
    assert np.abs(drawn(plain(base)).astype(int) - preview(runs[name]).astype(int)).max() > 5


def test_the_diffusers_lora_is_the_runs_own_file(runs: dict[str, Path], tmp_path: Path) -> None:
    export(Request(source=str(runs["lora"]), form="lora", out=tmp_path / "dog.safetensors"))
    assert (tmp_path / "dog.safetensors").read_bytes() == (runs["lora"] / lora.FILE).read_bytes()


def test_a_checkpoint_is_exported_as_it_was_then(runs: dict[str, Path], tmp_path: Path) -> None:
    place = sorted(runs["lora"].glob("checkpoint-*"))[0]
    export(Request(source=str(place), form="lora", out=tmp_path / "dog.safetensors"))
    assert (tmp_path / "dog.safetensors").read_bytes() == (place / lora.FILE).read_bytes()


@pytest.mark.parametrize("form", ["lora", "kohya", "single", "folder", "mindspore"])
def test_nothing_of_this_machine_is_in_an_export(form: str, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(Request(source=str(runs["lora"]), form=form, out=out))
    words = [b"private-place", str(runs["lora"].parent).encode(), b"/tmp/", str(Path.home()).encode()]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not [word for word in words if word in data], path


def test_a_model_without_a_run_is_called_by_its_name_alone(base: Path, tmp_path: Path) -> None:
    export(Request(source=str(base), form="single", out=tmp_path / "m.safetensors"))
    assert tensors.header(tmp_path / "m.safetensors").metadata["modelspec.title"] == "base"
    text = (tmp_path / "m.md").read_text()
    assert "A model of Stable Diffusion 1." in text
    assert "private-place" not in text


def test_the_card_and_the_metadata(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "dog.safetensors"
    said = {"title": "sks dog", "date": "2026-01-31", "author": "A. N.", "description": "My dog (brown)."}
    export(Request(source=str(runs["lora"]), form="kohya", out=out, tags=True, **said))
    text = (tmp_path / "dog.md").read_text()
    for line in (
        'license: "other"', 'license_name: "tiny"', 'instance_prompt: "a photo of sks thing"', "  - template:sd-lora",
        f'  - text: "{PROMPT}"', '      url: "dog-0.png"', "<Gallery />", "# sks dog",
        "- lora of unet, rank 3, alpha 5", "My dog (brown).", "Made by A. N. on 2026-01-31 with gesso",
    ):  # fmt: skip
        assert line in text
    assert png.read(tmp_path / "dog-0.png")["model"] == "sks dog"
    assert np.array_equal(pixels(tmp_path / "dog-0.png"), preview(runs["lora"]))
    found = tensors.header(out).metadata
    assert found["ss_network_dim"] == "3"
    assert found["ss_network_alpha"] == "5"
    assert found["ss_network_module"] == "networks.lora"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.trigger_phrase"] == "a photo of sks thing"
    assert found["modelspec.date"] == "2026-01-31"
    assert found["modelspec.author"] == "A. N."
    assert found["modelspec.description"] == found["ss_training_comment"] == "My dog (brown)."
    assert found["modelspec.license"] == "tiny"
    assert found["modelspec.prediction_type"] == "epsilon"
    assert found["ss_sd_model_name"] == "base"
    assert found["ss_resolution"] == "(64, 64)"
    assert (found["ss_steps"], found["ss_num_train_images"], found["ss_num_reg_images"]) == ("6", "5", "0")
    assert json.loads(found["ss_dataset_dirs"]) == {"instance": {"n_repeats": 1, "img_count": 5}}
    assert json.loads(found["ss_tag_frequency"]) == {"instance": {"a photo of sks thing": 5}}
    # kohya's own hash is over what lies behind the header.
    import hashlib

    data = out.read_bytes()
    behind = data[8 + int.from_bytes(data[:8], "little") :]
    assert found["sshs_model_hash"] == hashlib.sha256(behind).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{found['sshs_model_hash']}"


def test_captions_are_in_the_file_only_where_asked_for(runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    export(Request(source=str(runs["lora"]), form="kohya", out=tmp_path / "dog.safetensors"))
    assert "ss_tag_frequency" not in tensors.header(tmp_path / "dog.safetensors").metadata
    for reason, request in {
        "is for kohya's form": {"source": str(runs["lora"]), "form": "single"},
        "this is none": {"source": str(runs["lora"] / lora.FILE), "form": "kohya", "base": str(base)},
    }.items():
        place = tmp_path / "elsewhere" / lora.FILE
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(runs["lora"] / lora.FILE, place)
        given = {**request, "source": str(place)} if "base" in request else request
        with pytest.raises(RecipeError, match=reason):
            export(Request(out=tmp_path / "x.safetensors", tags=True, **given))


def test_the_older_hash_is_that_of_the_file_with_its_lasting_metadata(tmp_path: Path) -> None:
    """64 KiB from 1 MiB on, of a file that has the ss_ keys alone."""
    import hashlib

    rng = np.random.default_rng(1)
    arrays = {f"lora_unet_{n}.lora_down.weight": stored.of(rng.normal(size=(400, 300))) for n in range(2)}
    trained = {"ss_network_dim": "400", "ss_v2": "False"}
    stored.save_safetensors(tmp_path / "x.safetensors", arrays, trained)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert len(data) > 0x110000
    wanted = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert modelspec.legacy_digest(arrays, trained) == wanted
    small = {"a": stored.of(np.ones(3, np.float32))}
    assert modelspec.legacy_digest(small, trained) == hashlib.sha256(b"").hexdigest()[:8]


def test_a_trigger_is_the_trigger_phrase(base: Path, tmp_path: Path) -> None:
    """Pictures with captions of their own, and a trigger in front of them; of a checkpoint all is as it was then."""
    pictures(tmp_path / "pictures")
    data: Any = [{"path": str(tmp_path / "pictures"), "trigger": "sks"}]
    path = torch_recipe(tmp_path, base, adapter=LORA, data=data, save={"every": 3}, sample={"every": 3})
    assert go(path) == 0
    run = tmp_path / "out"
    assert 'instance_prompt: "sks"' in (run / "README.md").read_text()
    export(Request(source=str(run / "checkpoint-3"), form="kohya", out=tmp_path / "x", tags=True))
    found = tensors.header(tmp_path / "x" / "checkpoint-3.safetensors").metadata
    assert found["modelspec.trigger_phrase"] == "sks"
    assert found["ss_steps"] == "3"
    counts = json.loads(found["ss_tag_frequency"])["instance"]
    assert counts["sks"] == 5
    assert len(counts) > 1
    text = (tmp_path / "x" / "README.md").read_text()
    assert 'instance_prompt: "sks"' in text
    assert f'picture = pipe("{PROMPT}")' in text
    assert "- 3 steps of 2 pictures" in text
    assert np.array_equal(pixels(tmp_path / "x" / "images" / "0.png"), pixels(run / "samples/step-3/p00-s7.png"))
    # Damaged since: nothing of it is exported; of a run, a damaged picture is only left out.
    file = run / "checkpoint-3" / lora.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StorageError, match="this checkpoint is damaged"):
        export(Request(source=str(run / "checkpoint-3"), form="kohya", out=tmp_path / "y"))
    (run / "samples/step-6/p00-s7.png").write_bytes(b"no picture")
    done = export(Request(source=str(run), form="lora", out=tmp_path / "y"))
    assert "left out of the card" in done.notes[-1]
    assert "<Gallery />" not in (tmp_path / "y" / "README.md").read_text()


def test_the_same_run_gives_the_same_bytes(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(Request(source=str(runs["lora"]), form="single", out=tmp_path / name / "dog.safetensors"))
    one, two = (sorted(path for path in (tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("dtype", "code"), [("fp16", "F16"), ("bf16", "BF16")])
def test_smaller_types(dtype: str, code: str, runs: dict[str, Path], tmp_path: Path) -> None:
    done = export(Request(source=str(runs["lora"]), form="single", out=tmp_path / "m.safetensors", dtype=dtype))
    arrays = stored.open_safetensors(tmp_path / "m.safetensors")
    assert {tensor.code for tensor in arrays.values()} == {code}
    assert 1e-5 < done.apart < export_check.TOLERANCE[code]


def test_rounding_that_takes_what_was_learned_is_said(blank: Path, tmp_path: Path) -> None:
    folder = trained("lora", blank, tmp_path / "weak")
    arrays, config = lora.read(folder / lora.FILE)
    weak = {name: array * np.float32(3e-3) if "lora_B" in name else array for name, array in arrays.items()}
    lora.write(folder, weak, config)
    done = export(Request(source=str(folder), base=str(blank), form="single", out=tmp_path / "a", dtype="bf16"))
    assert "--dtype fp32 keeps all of it" in done.notes[0]
    done = export(Request(source=str(folder), base=str(blank), form="single", out=tmp_path / "b"))
    assert done.notes == []


def test_a_file_that_gives_something_else_is_removed(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One matrix is disturbed as it is written; then the whole file is cut off."""
    write = exporting.write

    def disturbed(trained: Any, form: str, target: Path, **options: Any) -> list[Path]:
        files = write(trained, form, target, **options)
        arrays = tensors.load(files[0])
        name = next(name for name in arrays if name.endswith("lora_up.weight"))
        tensors.save(files[0], {**arrays, name: arrays[name] + 1})
        return files

    def cut(trained: Any, form: str, target: Path, **options: Any) -> list[Path]:
        files = write(trained, form, target, **options)
        files[0].write_bytes(files[0].read_bytes()[:-100])
        return files

    flags = ["export", str(runs["lora"]), "--to", "kohya", "--out", str(tmp_path / "dog.safetensors")]
    monkeypatch.setattr(exporting, "write", disturbed)
    assert main(flags) == Exit.NUMBERS
    assert "apart from what was trained" in capsys.readouterr().err
    monkeypatch.setattr(exporting, "write", cut)
    assert main(flags) == Exit.STORAGE
    assert "cut off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_fails_is_quoted(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporting.write

    def other(trained: Any, form: str, target: Path, **options: Any) -> list[Path]:
        files = write(trained, form, target, **options)
        tensors.save(files[0], {"model.diffusion_model.nothing": np.zeros(3, np.float32)})
        return files

    monkeypatch.setattr(exporting, "write", other)
    with pytest.raises(StorageError, match="the reader of this form cannot load the export"):
        export(Request(source=str(runs["lora"]), form="single", out=tmp_path / "dog.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_before_anything_is_loaded(runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "card.md").touch()
    source = str(runs["lora"])
    for reason, request in {
        "there is no form zip": {"form": "zip", "out": tmp_path / "x"},
        "this is there already": {"form": "lora", "out": tmp_path / "there"},
        "card.md: this is there already": {"form": "lora", "out": tmp_path / "card.safetensors"},
        "the form folder is no .safetensors file": {"form": "folder", "out": tmp_path / "x.safetensors"},
        "the form mindspore is no .safetensors file": {"form": "mindspore", "out": tmp_path / "x.safetensors"},
        "--dtype fp16 is for whole models": {"form": "lora", "out": tmp_path / "x", "dtype": "fp16"},
        "is not like 2026-01-31": {"form": "lora", "out": tmp_path / "x", "date": "yesterday"},
        "no words were learned": {"form": "words", "out": tmp_path / "x"},
        "is no name on the Hub": {"form": "lora", "out": tmp_path / "x", "push": "dog"},
    }.items():
        with pytest.raises(RecipeError) as caught:
            export(Request(source=source, **request))
        assert reason in str(caught.value)
    with pytest.raises(RecipeError, match="holds no adapter"):
        export(Request(source=str(base), base=str(base), form="lora", out=tmp_path / "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "there"]


def test_an_adapter_of_another_base_is_refused(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    folder = trained("lora", blank, tmp_path / "lora")
    with pytest.raises(RecipeError, match="for another base"):
        export(Request(source=str(folder), base=str(blank_xl), form="single", out=tmp_path / "x"))


def test_what_the_command_says(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["export", str(runs["lora"]), "--to", "kohya", "--out", str(tmp_path / "dog.safetensors")]
    assert main([*flags, "--dry-run"]) == 0
    assert "a lora of sd1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(file).name for file in found["files"]] == ["dog-0.png", "dog.md", "dog.safetensors"]
    assert found["apart"] < 1e-5


def test_text_encoders_and_dora_scales_are_in_kohyas_file(blank_xl: Path, tmp_path: Path) -> None:
    folder = trained("dora", blank_xl, tmp_path / "dora")
    done = export(Request(source=str(folder), base=str(blank_xl), form="kohya", out=tmp_path / "d.safetensors"))
    names = tensors.header(tmp_path / "d.safetensors").tensors
    for prefix in ("lora_unet_input_blocks_", "lora_te1_text_model_", "lora_te2_text_model_"):
        assert any(name.startswith(prefix) and name.endswith(".dora_scale") for name in names)
    assert "only LyCORIS computes this" in done.notes[0]


def test_a_dora_for_comfyui_is_computed_as_trained_by_its_formula(blank: Path, tmp_path: Path) -> None:
    """m·(W + ΔW)/‖W‖ with what the file says, in torch, against peft's own merge of the DoRA as trained."""
    from gesso.formats import merge, parts

    folder = trained("dora", blank, tmp_path / "dora")
    request = Request(source=str(folder), base=str(blank), form="kohya", out=tmp_path / "d.safetensors")
    done = export(replace(request, reader="comfyui"))
    assert "only ComfyUI and Forge" in done.notes[0]
    found = {name: torch.from_numpy(array) for name, array in tensors.load(tmp_path / "d.safetensors").items()}
    own = parts.read(blank)[1]["unet"]
    wanted = merge.merged(parts.read(blank)[1], *lora.read(folder / lora.FILE))["unet"]
    modules = {name.split(".")[0] for name in found if name.startswith("lora_unet_")}
    for name, tensor in own.items():
        flat = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if flat not in modules:
            continue
        modules.remove(flat)
        weight = torch.from_numpy(np.array(tensor.read()))
        down, up = found[f"{flat}.lora_down.weight"], found[f"{flat}.lora_up.weight"]
        change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * found[f"{flat}.alpha"] / len(down)
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
        made = (weight + change) * (found[f"{flat}.dora_scale"] / norm)
        np.testing.assert_allclose(made.numpy(), wanted[name].read(), rtol=1e-4, atol=1e-6)
    assert not modules
    other = replace(request, source=str(trained("lora", blank, tmp_path / "lora")), out=tmp_path / "x.safetensors")
    with pytest.raises(RecipeError, match="is for a DoRA"):
        export(replace(other, reader="comfyui"))


def test_the_merged_words_are_where_they_are_said_to_be(blank: Path, tmp_path: Path) -> None:
    """A1111's files are called as the words, and plain diffusers reads them under their names."""
    folder = trained("ti", blank, tmp_path / "words")
    done = export(Request(source=str(folder), base=str(blank), form="a1111", out=tmp_path / "out"))
    assert {path.name for path in done.files} == {"README.md", "dog.safetensors", "hat.safetensors"}
    pipe = pipe_of(blank)
    pipe.load_textual_inversion(tmp_path / "out" / "dog.safetensors", token="<dog>")
    ids = pipe.tokenizer(pipe.maybe_convert_prompt("<dog>", pipe.tokenizer), add_special_tokens=False).input_ids
    vectors = pipe.text_encoder.get_input_embeddings().weight[ids]
    assert torch.equal(vectors, torch.from_numpy(tensors.load(folder / "learned_embeds.safetensors")["<dog>"]))


def test_a_weak_adapter_that_is_lost_is_seen(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its effect is smaller than the tolerance: a file with half of it must not pass."""
    folder = trained("lora", blank, tmp_path / "weak")
    arrays, config = lora.read(folder / lora.FILE)
    weak = {name: array * np.float32(1e-3) if "lora_B" in name else array for name, array in arrays.items()}
    lora.write(folder, weak, config)
    request = Request(source=str(folder), base=str(blank), form="kohya", out=tmp_path / "a.safetensors")
    export(request)
    write = exporting.write

    def halved(given: Any, form: str, target: Path, **options: Any) -> list[Path]:
        half = {name: array / 2 if "lora_B" in name else array for name, array in given.arrays.items()}
        return write(replace(given, arrays=half), form, target, **options)

    monkeypatch.setattr(exporting, "write", halved)
    with pytest.raises(NumbersError, match="apart from what was trained"):
        export(replace(request, out=tmp_path / "b.safetensors"))


def test_what_the_run_changed_in_the_scheduler_is_in_the_export(base: Path, tmp_path: Path) -> None:
    """A LoRA trained for v-prediction on a base that predicts noise, merged: plain diffusers draws the preview."""
    pictures(tmp_path / "pictures")
    table = {"prediction": "v_prediction"}
    assert go(torch_recipe(tmp_path, base, adapter=LORA, objective=table)) == 0
    run = tmp_path / "out"
    export(Request(source=str(run), form="folder", out=tmp_path / "merged"))
    pipe = plain(tmp_path / "merged")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert np.abs(drawn(pipe).astype(int) - preview(run).astype(int)).max() <= 1
    done = export(Request(source=str(run), form="single", out=tmp_path / "v.safetensors"))
    assert tensors.header(tmp_path / "v.safetensors").metadata["modelspec.prediction_type"] == "v"
    assert "it predicts v_prediction, which a file in this form cannot say" in done.notes[0]


def test_an_adapter_with_words_is_two_exports(blank: Path, tmp_path: Path) -> None:
    folder = trained("lora", blank, tmp_path / "both")
    words = trained("ti", blank, tmp_path / "words")
    for file in words.iterdir():
        shutil.copyfile(file, folder / file.name)
    request = Request(source=str(folder), base=str(blank), form="lora", out=tmp_path / "lora.safetensors")
    assert "the learned words are not in it" in export(request).notes[0]
    done = export(replace(request, form="words", out=tmp_path / "w"))
    assert [path.name for path in done.files if path.suffix == ".safetensors"] == [
        "learned_embeds-2.safetensors",
        "learned_embeds.safetensors",
    ]


def test_a_checkpoint_of_a_run_that_averages_is_told_apart(base: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    assert go(torch_recipe(tmp_path, base, adapter=LORA, optim={"ema": 0.9}, train={"steps": 2})) == 0
    run = tmp_path / "out"
    done = export(Request(source=str(run / "checkpoint-2"), form="lora", out=tmp_path / "x.safetensors"))
    assert "the checkpoint's own weights" in done.notes[-1]
    done = export(Request(source=str(run), form="lora", out=tmp_path / "y.safetensors"))
    assert not done.notes
    assert (tmp_path / "x.safetensors").read_bytes() != (tmp_path / "y.safetensors").read_bytes()


def test_one_file_needs_its_base(runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    export(Request(source=str(runs["lora"]), form="kohya", out=tmp_path / "k.safetensors"))
    request = Request(source=str(tmp_path / "k.safetensors"), form="lora", out=tmp_path / "x")
    with pytest.raises(RecipeError, match="name an adapter's base with --base"):
        export(request)
    # Another program's names are no hindrance: what is in it comes out as it went in.
    export(replace(request, base=str(base), out=tmp_path / "x.safetensors"))
    (found, config), (own, alike) = (adapter.read(path) for path in (tmp_path / "x.safetensors", runs["lora"]))
    assert found.keys() == own.keys()
    sizes, wanted = adapter.sizes(found, config), adapter.sizes(own, alike)
    for module, (rank, alpha) in sizes.items():
        down, up = (f"{module}.lora_{side}.weight" for side in "AB")
        mine = wanted[module][1] / wanted[module][0] * own[up] @ own[down]
        np.testing.assert_allclose(alpha / rank * found[up] @ found[down], mine, rtol=1e-5, atol=1e-7)
