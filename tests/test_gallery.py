"""Where pictures go, what is left to draw, pictures that begin with a picture, and several at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from runs import gesso
from torch_runs import pixels

from gesso import cli, gallery
from gesso.engines.engine import SampleRequest
from gesso.errors import Exit, LockedError, RecipeError
from gesso.formats import png
from gesso.generate import Request, drawn, generate, outline, prepare


def asked(base: Path, out: Path, *prompts: str, **options: Any) -> Request:
    whole: dict[str, Any] = {"steps": 2, "guidance": 2.0, "device": "cpu", "precision": "fp32", **options}
    return Request(model=str(base), prompts=prompts or ("a cat",), out=out, **whole)


def names(out: Path) -> list[str]:
    return sorted(file.relative_to(out).as_posix() for file in out.rglob("*.png"))


def test_a_folder_for_each_prompt_goes_on_counting(tmp_path: Path, blank: Path) -> None:
    for _ in range(2):
        generate(asked(blank, tmp_path, "a cat", "a/b: <dog>?", seeds=(0, 1), by_prompt=True))
    assert names(tmp_path) == [
        *(f"a cat/image_{at}.png" for at in range(4)),
        *(f"a_b_ _dog__/image_{at}.png" for at in range(4)),
    ]


def test_folders_are_apart_and_short_whatever_the_prompts() -> None:
    prompts = ("A cat", "a cat", "é" * 300, "é" * 301, "..", "...", "🐶 / 🐱", "a" * 99 + ". b", "nul\x01")
    wanted = [SampleRequest(prompt=prompt, seed=0) for prompt in prompts]
    files = gallery.places(Path("out"), wanted, gallery.folders(prompts))
    folders = [file.parent.name for file in files]
    assert len({name.casefold() for name in folders}) == len(prompts)
    assert all(0 < len(name.encode()) < 128 and name not in (".", "..") for name in folders)
    assert all(file.parent.parent == Path("out") for file in files)


def test_what_is_there_is_left_out(tmp_path: Path, blank: Path) -> None:
    request = asked(blank, tmp_path / "out", "a cat", "a dog", seeds=(0, 1), resume=True)
    stopped = drawn(prepare(request))
    for _ in range(3):
        next(stopped)
    stopped.close()
    (tmp_path / "out" / "broken.png").write_bytes(b"no picture")
    assert [(each.prompt, each.seed) for each in prepare(request).wanted] == [("a dog", 1)]
    (last,) = generate(request)
    assert last.name == "00003.png"
    straight = generate(asked(blank, tmp_path / "straight", "a cat", "a dog", seeds=(0, 1)))
    for file in straight:
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert generate(request) == []
    assert outline(prepare(request)).startswith("nothing: all of it is in")
    assert len(prepare(asked(blank, tmp_path / "out", "a cat", steps=3, resume=True)).wanted) == 1
    assert len(prepare(asked(blank, tmp_path / "out", "a cat")).wanted) == 1, "without resume it is drawn again"


def test_ten_thousand_prompts_begin_at_once_and_go_on_after_a_stop(tmp_path: Path, blank: Path) -> None:
    prompts = tuple(f"a cat number {number}" for number in range(10_000))
    request = asked(blank, tmp_path, *prompts, resume=True)
    stopped = drawn(prepare(request))
    first = [next(stopped) for _ in range(5)]
    stopped.close()
    assert [png.read(file)["prompt"] for file in first] == list(prompts[:5])
    left = prepare(request)
    assert len(left.wanted) == 10_000 - len(names(tmp_path))
    assert left.files[0].name == f"{len(names(tmp_path)):05d}.png"


def test_killed_in_the_middle_of_ten_thousand_it_goes_on_as_if_nothing_had_been(tmp_path: Path, blank: Path) -> None:
    prompts = [f"a cat number {number}" for number in range(10_000)]
    # As Windows writes it: a byte order mark, two characters at a line's end, an empty line, and a tail without one.
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", *prompts]).encode())
    out = tmp_path / "out"
    words = [
        "generate",
        "--model",
        blank,
        "--prompts-file",
        tmp_path / "prompts.txt",
        "--steps",
        "2",
        "--guidance",
        "2",
    ]
    command = [sys.executable, "-m", "gesso", *map(str, words), "--device", "cpu", "--resume", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as drawing:
        assert drawing.stdout is not None
        said = [drawing.stdout.readline().strip() for _ in range(4)]
        drawing.kill()
    assert said == [f"{out}/{number:05d}.png" for number in range(4)], "each is said once it is there"
    count = len(names(out))
    assert count < 10_000
    left = out / f".{count:05d}.png.tmp-0123abcd"
    left.write_bytes(b"half a picture")
    ready = prepare(asked(blank, out, *prompts, resume=True))
    assert [each.prompt for each in ready.wanted] == prompts[count:]
    going_on = drawn(ready)
    assert next(going_on).name == f"{count:05d}.png"
    assert not left.exists()
    with pytest.raises(LockedError, match="another run is using this folder"):
        generate(asked(blank, out, "a dog"))
    going_on.close()
    assert names(out) == [f"{number:05d}.png" for number in range(count + 1)]
    assert [png.read(out / name)["prompt"] for name in names(out)] == prompts[: count + 1]


def test_a_prompt_keeps_its_folder_when_the_rest_is_drawn(tmp_path: Path, blank: Path) -> None:
    request = asked(blank, tmp_path, "A cat", "a cat", seeds=(0, 1), by_prompt=True, resume=True)
    stopped = drawn(prepare(request))
    for _ in range(3):
        next(stopped)
    stopped.close()
    generate(request)
    assert names(tmp_path) == [f"{folder}/image_{at}.png" for folder in ("A cat", "a cat (2)") for at in (0, 1)]


def test_a_picture_of_another_model_of_the_same_name_is_not_taken_for_it(tmp_path: Path, blank: Path) -> None:
    from gesso.formats import tensors

    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    model = tmp_path / "model"
    shutil.copytree(blank, model)
    request = asked(model, tmp_path / "out", resume=True, steps=4, image=tmp_path / "start.png")
    (first,) = generate(request)
    assert f"Model hash: {png.read(first)['model_hash']}, Model: model" in png.parameters(png.read(first))
    assert generate(request) == []
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "start.png")
    assert len(prepare(request).wanted) == 1, "it would begin with another picture"
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = tensors.load(path)
    arrays["conv_out.bias"] = arrays["conv_out.bias"] + 1.0
    tensors.save(path, arrays, {"format": "pt"})
    (other,) = generate(request)
    assert other.name == "00001.png"
    assert not np.array_equal(pixels(first), pixels(other))


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = generate(asked(blank, tmp_path / "first"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GESSO_CACHE", str(tmp_path / "file" / "cache"))
    (second,) = generate(asked(blank, tmp_path / "second"))
    assert first.read_bytes() == second.read_bytes()


def test_half_a_picture_is_drawn_again(tmp_path: Path, blank: Path) -> None:
    request = asked(blank, tmp_path, resume=True)
    (first,) = generate(request)
    first.write_bytes(first.read_bytes()[:-20])
    assert [file.name for file in generate(request)] == ["00001.png"]


def test_several_at_once_are_nearly_those_drawn_alone(tmp_path: Path, blank: Path) -> None:
    request: dict[str, Any] = {"seeds": (0, 1, 2), "negative": "a dog"}
    alone = generate(asked(blank, tmp_path / "alone", "a cat", "an apple", **request))
    together = generate(asked(blank, tmp_path / "together", "a cat", "an apple", batch=4, **request))
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert png.read(one) == png.read(other)
        assert np.abs(pixels(one).astype(int) - pixels(other).astype(int)).max() <= 2
    assert not np.array_equal(pixels(alone[0]), pixels(alone[1]))


@pytest.mark.parametrize("denoise", [None, 1.0, 0.5])
def test_a_picture_to_begin_with_is_diffusers_img2img(tmp_path: Path, blank: Path, denoise: float | None) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "start.png")
    request = asked(blank, tmp_path / "out", image=tmp_path / "start.png", denoise=denoise, steps=8, seeds=(4,))
    (made,) = generate(request)
    plain = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(blank, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    picture = plain(
        "a cat",
        image=Image.open(tmp_path / "start.png"),
        strength=denoise or 0.6,
        num_inference_steps=8,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(4),
    ).images[0]
    assert np.array_equal(pixels(made), np.asarray(picture))
    said = png.read(made)
    assert (said["image"], said["denoise"]) == ("start.png", denoise or 0.6)


def test_a_picture_to_begin_with_takes_the_size_that_is_asked_for(tmp_path: Path, blank: Path) -> None:
    Image.new("RGB", (101, 70), "red").save(tmp_path / "start.png")
    own = prepare(asked(blank, tmp_path, image=tmp_path / "start.png")).wanted[0]
    assert (own.width, own.height) == (96, 64)
    other = prepare(asked(blank, tmp_path, image=tmp_path / "start.png", width=64, height=72)).wanted[0]
    assert other.image is not None
    assert other.image.shape == (72, 64, 3)


def test_sdxl_begins_with_a_picture_and_its_refiner_ends_it(tmp_path: Path, blank_xl: Path) -> None:
    from gesso.engines.torch.demo.blank_xl import write

    write(tmp_path / "refiner", refiner=True, seed=5)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    plain = generate(asked(blank_xl, tmp_path / "out", image=tmp_path / "start.png", steps=6))[0]
    both = generate(
        asked(blank_xl, tmp_path / "out", image=tmp_path / "start.png", steps=6, refiner=str(tmp_path / "refiner"))
    )[0]
    assert not np.array_equal(pixels(plain), pixels(both))


def test_a_lora_of_another_program_and_a_model_in_one_file_draw_the_same(tmp_path: Path, blank: Path) -> None:
    from gesso.formats import convert as converting
    from gesso.formats import convert_lora, lora

    rng = np.random.default_rng(1)
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = 128
    arrays = {
        f"{module}.lora_A.weight": rng.standard_normal((2, width), dtype=np.float32),
        f"{module}.lora_B.weight": rng.standard_normal((width, 2), dtype=np.float32),
    }
    lora.write(tmp_path / "own.safetensors", arrays, lora.Config(rank=2, alpha=3.0))
    found = convert_lora.read(tmp_path / "own.safetensors", None)
    convert_lora.write(found, tmp_path / "kohya.safetensors", "kohya", blank, "sd1")
    converting.convert(converting.Request(source=blank, target=tmp_path / "whole.safetensors"))
    own, kohya = (
        generate(asked(blank, tmp_path / name, loras=(tmp_path / f"{name}.safetensors",), strengths=(0.7,)))
        for name in ("own", "kohya")
    )
    one = generate(
        asked(
            tmp_path / "whole.safetensors",
            tmp_path / "one",
            like=str(blank),
            loras=(tmp_path / "own.safetensors",),
            strengths=(0.7,),
        )
    )
    assert np.array_equal(pixels(own[0]), pixels(kohya[0]))
    assert np.array_equal(pixels(own[0]), pixels(one[0]))
    assert not np.array_equal(pixels(own[0]), pixels(generate(asked(blank, tmp_path / "plain"))[0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"denoise": 0.5}, "no effect without --image"),
        ({"image": Path("x.png"), "denoise": 0.0}, "must be above 0"),
        ({"image": Path("x.png"), "denoise": 0.1}, "leaves none"),
        ({"image": Path("x.png"), "steps": 9, "handover": 0.5, "refiner": "x"}, "do not go together"),
        ({"image": Path("none.png"), "steps": 9}, "--image: cannot be read"),
        ({"batch": 0}, "--batch is 0"),
        ({"guidance": 1.0, "negative": "a dog"}, "--negative has no effect at --guidance 1"),
        ({"negative": "a \0"}, r"the prompt 'a \\x00' is no text in UTF-8"),
        ({"negative": "\udcff"}, "is no text in UTF-8"),
        ({"seeds": tuple(range(1_000_001))}, "1,000,001 pictures are more than the 1,000,000 of one command"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path, blank: Path, options: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        prepare(asked(blank, tmp_path, **options))


def test_the_command_says_each_file_and_goes_on(tmp_path: Path, blank: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    command = ["generate", "--model", blank, "--prompts-file", tmp_path / "prompts.txt", "--steps", 2, "--out"]
    command += [tmp_path / "out", "--by-prompt", "--resume", "--scheduler", "euler a", "--batch", 2]
    first = gesso(*command)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [f"{tmp_path}/out/a {kind}/image_0.png" for kind in ("cat", "dog")]
    again = gesso(*command)
    assert (again.returncode, again.stdout) == (0, "")
    wrong = gesso(*command, "--scheduler", "eulr")
    assert wrong.returncode == 2
    assert 'did you mean "Euler"' in wrong.stderr


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "has no prompt"), (b" \n\r\n", "has no prompt"), ("é".encode("utf-16"), "not UTF-8")]
)
def test_a_file_without_prompts_is_said(
    tmp_path: Path, blank: Path, capsys: pytest.CaptureFixture[str], content: bytes, says: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    words = ["generate", "--model", str(blank), "--prompts-file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path)]
    assert cli.main(words) == Exit.RECIPE
    said = capsys.readouterr().err
    assert says in said
    assert "prompts.txt" in said
