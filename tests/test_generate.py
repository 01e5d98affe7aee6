"""`gesso generate`: what it refuses before it loads anything, what --dry-run says, and LoRAs that fit or do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gesso import cli, generate
from gesso.arrays import Array
from gesso.engines.engine import SampleRequest
from gesso.errors import Exit, NumbersError, RecipeError
from gesso.formats import lora, pipeline, png, tensors
from gesso.generate import Request, prepare
from gesso.keys import generator

RANK = 2
ENDS = ("to_q", "to_out.0", "q_proj")


def draw(out: Path, **given: Any) -> list[Path]:
    whole: dict[str, Any] = {"prompts": ("a cat",), "steps": 2, "guidance": 2.0, "device": "cpu", "precision": "fp32"}
    return generate.generate(Request(out=out, **{**whole, **given}))


def made(folder: Path, *parts: str, wider: int = 0) -> dict[str, Array]:
    """A LoRA for some layers of a model folder; `wider` makes it one of another model's width."""
    rng = generator(3, "lora")
    arrays: dict[str, Array] = {}
    for part in parts:
        for name, shape in pipeline.shapes(folder / part).items():
            module = name.removesuffix(".weight")
            if module.endswith(ENDS) and len(shape) == 2:
                wide = shape[1] + wider
                arrays[f"{part}.{module}.lora_A.weight"] = rng.standard_normal((RANK, wide), dtype=np.float32)
                arrays[f"{part}.{module}.lora_B.weight"] = rng.standard_normal((shape[0], RANK), dtype=np.float32)
    return arrays


def file_of(path: Path, arrays: Mapping[str, Array]) -> Path:
    lora.write(path, arrays, lora.Config(rank=RANK, alpha=1.0))
    return path


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an engine was made")

    monkeypatch.setattr(generate, "_engine", refuse)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 1001}, "--steps is 1001, but the model has 1000 noise levels"),
        ({"strengths": (float("nan"),)}, "--strength must be a number, such as 0.8"),
        ({"strengths": (float("inf"),)}, "--strength must be a number, such as 0.8"),
    ],
)
def test_numbers_are_refused_before_anything_is_loaded(
    given: dict[str, Any], said: str, blank: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        draw(tmp_path / "pics", model=str(blank), **given)
    assert not (tmp_path / "pics").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_place_that_cannot_be_is_found_before_anything_is_loaded(blank: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["generate", "--model", str(blank), "--prompt", "x", "--out"]
    with pytest.raises(RecipeError, match=r"lies in .*file, which is a file, must be a folder"):
        draw(tmp_path / "file" / "pics" / "more", model=str(blank))
    assert cli.main([*words, str(tmp_path / "file" / "pics")]) == Exit.RECIPE


def test_a_disk_that_takes_nothing_is_found_before_anything_is_loaded(blank: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom gesso import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2, 2))\n"  # bytes: as if the disk were full
        "code = cli.main(['generate', '--model', sys.argv[1], '--prompt', 'x', '--out', sys.argv[2]])\n"
        "print(int(code), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(blank), str(tmp_path / "pics")], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{int(Exit.STORAGE)} False\n", done.stderr
    assert "no room on the disk: the folder of the pictures" in done.stderr


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_dry_run_says_what_and_where_and_writes_nothing(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path / "cat.safetensors", made(blank, "unet"))
    out = tmp_path / "pics"
    words = ["generate", "--model", str(blank), "--prompt", "a cat", "--prompt", "a dog", "--seed", "4", "--dry-run"]
    words += ["--lora", str(path), "--strength", "0.5", "--out", str(out)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == (
        f"model     {blank} (StableDiffusionPipeline)\n"
        f"LoRA      {path}, strength 0.5\n"
        "pictures  2: 64 by 64 pixels, 25 steps, guidance 7.5\n"
        f"{out.as_posix()}/00000.png  seed 4  a cat\n"
        f"{out.as_posix()}/00001.png  seed 4  a dog\n"
    )
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [f"{out.as_posix()}/0000{number}.png" for number in (0, 1)]
    assert not out.exists()
    assert cli.main([*words, "--steps", "0"]) == Exit.RECIPE


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_lora_of_another_base_is_refused_before_anything_is_loaded(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made(blank, "unet")
    wider = file_of(tmp_path / "wider.safetensors", made(blank, "unet", wider=8))
    half = len(whole) // 2
    with pytest.raises(RecipeError, match=f"made for another base: {half} of {len(whole)} tensors fit; unet.*lora_A"):
        draw(tmp_path / "pics", model=str(blank), loras=(wider,))
    modules = {name.replace("attentions", "transformers"): array for name, array in whole.items()}
    other = file_of(tmp_path / "other.safetensors", modules)
    with pytest.raises(RecipeError, match=f": 0 of {len(whole)} tensors fit; .*: the base has no layer unet"):
        draw(tmp_path / "pics", model=str(blank), loras=(other,))
    strange = file_of(tmp_path / "strange.safetensors", {f"prior.{n[5:]}": array for n, array in whole.items()})
    with pytest.raises(RecipeError, match="the base has no layer prior"):
        draw(tmp_path / "pics", model=str(blank), loras=(strange,))
    foreign = tmp_path / "foreign.safetensors"
    tensors.save(foreign, {"lora_unet_a.lora_down.weight": np.zeros((2, 2), np.float32)})
    (tmp_path / "photo.safetensors").write_bytes(b"not a LoRA at all")
    for path in (wider, foreign, tmp_path / "photo.safetensors"):
        words = ["generate", "--model", str(blank), "--prompt", "x", "--out", str(tmp_path / "pics"), "--lora"]
        assert cli.main([*words, str(path)]) == Exit.RECIPE
        assert str(path) in capsys.readouterr().err


def test_a_loras_text_encoder_half_counts_as_in_plain_diffusers(blank: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    both = made(blank, "unet", "text_encoder")
    assert any(name.startswith("text_encoder.") for name in both)
    path = file_of(tmp_path / "both.safetensors", both)
    half = file_of(tmp_path / "half.safetensors", made(blank, "unet"))
    ours, without = (png_pixels(draw(tmp_path / p.stem, model=str(blank), loras=(p,))[0]) for p in (path, half))
    pipe = StableDiffusionPipeline.from_pretrained(blank)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    answer = pipe(
        "a cat", num_inference_steps=2, guidance_scale=2.0, negative_prompt="", output_type="np",
        generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]  # fmt: skip
    assert np.array_equal(ours, np.round(answer * 255.0).astype(np.uint8))
    assert not np.array_equal(ours, without)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # diffusers, at its second LoRA
def test_several_loras_with_strengths_add_up_as_in_plain_diffusers(blank: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    first = file_of(tmp_path / "first.safetensors", made(blank, "unet"))
    second = file_of(tmp_path / "second.safetensors", {name: -2 * array for name, array in made(blank, "unet").items()})
    for strengths in ((0.8, -0.3), (0.5, 0.0)):
        (ours,) = draw(tmp_path / "pics", model=str(blank), loras=(first, second), strengths=strengths)
        pipe = StableDiffusionPipeline.from_pretrained(blank)
        pipe.set_progress_bar_config(disable=True)
        for path in (first, second):
            pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name=path.stem)
        pipe.set_adapters(["first", "second"], list(strengths))
        answer = pipe(
            "a cat", num_inference_steps=2, guidance_scale=2.0, output_type="np",
            generator=torch.Generator("cpu").manual_seed(0),
        ).images[0]  # fmt: skip
        assert np.array_equal(png_pixels(ours), np.round(answer * 255.0).astype(np.uint8))
        assert png.read(ours)["strengths"] == list(strengths)


def test_a_lora_of_another_family_is_refused(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    for own, other in ((blank, blank_xl), (blank_xl, blank)):
        path = file_of(tmp_path / f"{own.name}.safetensors", made(own, "unet"))
        with pytest.raises(RecipeError, match="this LoRA was made for another base"):
            prepare(Request(model=str(other), prompts=("a",), out=tmp_path / "pics", loras=(path,)))
    with pytest.raises(RecipeError, match="this is a LoRA, not a whole model") as caught:
        prepare(Request(model=str(path), prompts=("a",), out=tmp_path / "pics"))
    assert "--lora" in caught.value.todo


def test_a_disk_that_fills_up_says_how_to_go_on(blank: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom gesso import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"  # bytes: less than a picture, more than a lock
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = ["generate", "--model", str(blank), "--prompt", "x", "--steps", "2", "--out", str(tmp_path / "pics")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.STORAGE, done.stderr
    assert "no room on the disk: the picture needs" in done.stderr
    assert "start the same command again with --resume" in done.stderr
    assert not [file.name for file in (tmp_path / "pics").iterdir() if ".png" in file.name]


def png_pixels(path: Path) -> Any:
    from PIL import Image

    assert png.read(path)["prompt"] == "a cat"
    return np.asarray(Image.open(path))


def test_a_scheduler_must_be_one_that_the_model_takes(blank: Path, tmp_path: Path) -> None:
    for name in ("UNet2DConditionModel", "NoScheduler", "schedulers"):
        with pytest.raises(RecipeError, match=f'there is no scheduler "{name}".*\n.*DDIM, .*PLMS, '):
            draw(tmp_path / "pics", model=str(blank), scheduler=name)
    with pytest.raises(RecipeError, match="does not fit this model: it is for models trained with flow matching"):
        draw(tmp_path / "pics", model=str(blank), scheduler="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(RecipeError, match="PNDMScheduler cannot draw in 2 steps: "):
        draw(tmp_path / "pics", model=str(blank), scheduler="PNDMScheduler")
    assert len(draw(tmp_path / "pics", model=str(blank), scheduler="DDPMScheduler")) == 1


def test_a_picture_that_is_no_picture_is_an_error_not_black(blank: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(blank, broken)
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = tensors.load(path)
    arrays["decoder.conv_out.bias"] = np.full_like(arrays["decoder.conv_out.bias"], np.nan)
    tensors.save(path, arrays, {"format": "pt"})
    with pytest.raises(NumbersError, match=r'the picture "a cat" \(seed 0\) came out as not-a-number'):
        draw(tmp_path / "pics", model=str(broken))
    assert not list((tmp_path / "pics").glob("*.png"))
    words = ["generate", "--model", str(broken), "--prompt", "x", "--steps", "2", "--out", str(tmp_path / "pics")]
    assert cli.main(words) == Exit.NUMBERS


def test_prepare_tells_the_engine_nothing_that_it_need_not_know(blank: Path, tmp_path: Path) -> None:
    ready = prepare(Request(model=str(blank), prompts=("a", "b"), seeds=(1, 2), out=tmp_path, steps=7))
    assert ready.wanted[1] == SampleRequest(prompt="a", seed=2, width=64, height=64, steps=7, guidance=7.5)
    assert [file.name for file in ready.files] == ["00000.png", "00001.png", "00002.png", "00003.png"]
