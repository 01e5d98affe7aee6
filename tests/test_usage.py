"""What a run tells its user about using it is true, and what could only end in nothing is refused."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import pictures
from safetensors.numpy import load_file, save_file
from torch_runs import FULL, GUIDANCE, LORA, PROMPT, STEPS, copy_with, disturb, go, pixels, torch_recipe

from gesso.arrays import Picture
from gesso.errors import Exit, NumbersError, RecipeError
from gesso.formats import usage
from gesso.recipe import load
from gesso.run import train
from gesso.settings import settled

OFT = {"kind": "oft", "rank": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures", 4)
    return tmp_path


def shown(page: str, name: str) -> str:
    """A fact of the page's table."""
    found = re.search(rf"<dt>{name}</dt>\s*<dd>(.*?)</dd>", page)
    assert found
    return html.unescape(found[1])


def on_the_page(page: str) -> str:
    """The Python lines of the page."""
    found = re.search(r"In Python, with diffusers</h3><pre[^>]*><code>(.*?)</code>", page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def drawn_by(lines: str, start: str) -> Picture:
    """What loading lines draw with the settings of the runs; they end where the drawing starts."""
    assert start in lines
    names: dict[str, Any] = {}
    exec(lines[: lines.index(start)], names)
    picture = names["pipe"](
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    return np.asarray(picture)


@pytest.mark.parametrize("changed", ["", "prediction", "zero_snr", "vae", "model_vae"])
@pytest.mark.parametrize("adapter", [LORA, OFT, FULL], ids=lambda adapter: str(adapter["kind"]))
def test_card_and_page_load_what_was_trained(
    adapter: dict[str, Any], changed: str, folder: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lines, run as they stand, draw the last sample pixel for pixel: another schedule and autoencoder too."""
    if adapter is FULL and changed not in ("", "vae"):
        pytest.skip("a whole model has it all in its folder")
    tables: dict[str, Any] = {"adapter": adapter}
    if changed in ("prediction", "zero_snr"):
        tables["objective"] = {"prediction": "v_prediction", **({"zero_snr": True} if changed == "zero_snr" else {})}
    if changed.endswith("vae"):
        other = copy_with(blank, folder / "other")
        disturb(other / "vae" / "diffusion_pytorch_model.safetensors", "decoder.conv_out.weight")
        tables["model"] = {"vae": str(other if changed == "model_vae" else other / "vae")}
    path = torch_recipe(folder, blank, **tables)
    assert go(path) == Exit.DONE
    out = folder / "out"
    last = pixels(out / "samples/step-6/p00-s7.png")

    card = (out / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    lines = code[1].replace(usage.VAE, str(folder / "other" / "vae"))
    lines = lines.replace("path/of/this/folder", str(out)).replace("path/of/the/base/model", str(blank))
    assert np.array_equal(last, drawn_by(lines, "picture = pipe("))
    assert "of unet, rank" in card or adapter is FULL

    monkeypatch.chdir(folder)
    page = on_the_page((out / "report.html").read_text(encoding="utf-8"))
    assert np.array_equal(last, drawn_by(page, 'pipe("'))


def test_the_page_has_every_learning_rate_and_the_words(folder: Path, blank: Path) -> None:
    """Each group's own rate; words alone have theirs, and no rank."""
    tables: dict[str, Any] = {"tokens": [{"name": "<dog>"}], "data": [{"path": str(folder / "pictures")}]}
    for picture in (folder / "pictures").glob("*.txt"):
        picture.write_text("a <dog>", encoding="utf-8")
    rates = {"lr": 1e-3, "text_encoder_lr": 5e-5, "token_lr": 2e-2}
    both: dict[str, Any] = {"model": {"base": str(blank), "train": ["unet", "text_encoder"]}}
    short: dict[str, Any] = {"train": {"steps": 1}, "sample": {"every": 0}}
    assert go(torch_recipe(folder, blank, adapter=LORA, optim=rates, **both, **short, **tables)) == Exit.DONE
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert shown(page, "Learning rate") == "0.001 (unet), 5e-05 (text encoder), 0.02 (words), constant"
    assert shown(page, "Method") == "LoRA and new words"
    lines = on_the_page(page)
    assert "pipe.load_lora_weights(" in lines
    assert "pipe.load_textual_inversion(" in lines
    assert "learning rate of text_encoder: 5e-05" in (folder / "out" / "README.md").read_text(encoding="utf-8")

    own: dict[str, Any] = {"optim": {"token_lr": 2e-2}, "adapter": {"kind": "ti"}, "out": str(folder / "words")}
    assert go(torch_recipe(folder, blank, **own, **short, **tables)) == Exit.DONE
    page = (folder / "words" / "report.html").read_text(encoding="utf-8")
    assert shown(page, "Learning rate") == "0.02, constant"
    assert shown(page, "Method") == "Textual inversion"
    assert "<dt>Rank</dt>" not in page
    assert "pipe.load_textual_inversion(" in on_the_page(page)


@pytest.mark.parametrize("kind", ["pictures", "teacher"])
def test_a_class_named_as_the_subject_is_refused(kind: str, folder: Path, blank: Path) -> None:
    """As text encoders read prompts: without regard to capitals and spaces."""
    for file in (folder / "pictures").iterdir():
        if file.suffix != ".png":  # captions of their own
            file.unlink()
    data: Any = [{"path": str(folder / "pictures"), "prompt": "a photo of sks dog"}]
    path = torch_recipe(folder, blank, data=data, prior={"prompt": "A photo of  sks dog", "kind": kind})
    with pytest.raises(RecipeError, match="as is the caption of every picture"):
        go(path)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("pivot", "steps", "warmup", "said"),
    [
        (0.9, 2, 0, "leaves the adapter 0, which learns nothing"),
        (0.1, 4, 0, "leaves the words 0, which learns nothing"),
        (0.5, 10, 5, "leaves the words 5, all of them optim.warmup, which is 5"),
        (0.6, 10, 5, "leaves the adapter 4, all of them optim.warmup"),
        (0.5, 10, 4, ""),
        (0.5, 2, 0, ""),
    ],
)
def test_both_halves_of_pivotal_tuning_learn(
    pivot: float, steps: int, warmup: int, said: str, folder: Path, blank: Path
) -> None:
    tokens: Any = [{"name": "<dog>"}]
    path = torch_recipe(
        folder,
        blank,
        adapter={**LORA, "pivot": pivot},
        tokens=tokens,
        train={"steps": steps},
        optim={"warmup": warmup},
    )
    recipe = load(path, []).recipe
    if not said:
        assert settled(recipe, 4).train.steps == steps
        return
    with pytest.raises(RecipeError, match=re.escape(said)):
        settled(recipe, 4)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_run_that_never_took_a_step_does_not_end_well(steps: int, folder: Path, blank: Path) -> None:
    """A base with weights that are not numbers: fewer steps than patience are no excuse, and the reason is said."""
    broken = copy_with(blank, folder / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    arrays["conv_out.bias"] = np.full_like(arrays["conv_out.bias"], np.nan)
    save_file(arrays, file, metadata={"format": "pt"})
    with pytest.raises(NumbersError, match="in a row") as caught:
        go(torch_recipe(folder, broken, train={"steps": steps}, save={"every": 0}))
    assert "the base's weights are broken" in caught.value.todo
    assert not list((folder / "out").glob("checkpoint-*"))
    assert not (folder / "out" / "pytorch_lora_weights.safetensors").exists()


def test_gradient_checkpointing_of_a_text_encoder_says_nothing(folder: Path, blank: Path) -> None:
    """Newer transformers warn of the older name."""
    tables: dict[str, Any] = {"model": {"base": str(blank), "train": ["text_encoder"]}, "train": {"steps": 1}}
    tables["train"]["gradient_checkpointing"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert go(torch_recipe(folder, blank, **tables)) == Exit.DONE


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ({"pictures": 30}, 'class     30 pictures of "a dog"; what is not there is drawn with the base model'),
        ({"kind": "teacher"}, 'class     "a dog", held to the base model\'s own answers'),
        ({}, ""),
    ],
)
def test_a_dry_run_tells_where_the_class_comes_from(
    prior: dict[str, Any], said: str, folder: Path, blank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = torch_recipe(folder, blank, **({"prior": {"prompt": "a dog", **prior}} if prior else {}))
    assert train(load(path, []), dry_run=True) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("class")] == ([said] if said else [])


@pytest.mark.parametrize(("count", "told"), [(1, False), (2, True)])
def test_one_held_out_picture_has_no_error(
    count: int, told: bool, folder: Path, blank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its standard error is not known, which is another thing than none."""
    held = pictures(folder / "held", count)
    path = torch_recipe(folder, blank, validate={"path": str(held)}, train={"steps": 1})
    assert go(path, "--track.console", "lines") == Exit.DONE
    told_all = capsys.readouterr()
    lines = [line for line in (told_all.out + told_all.err).splitlines() if "event=validated" in line]
    assert lines
    assert all((" error=" in line) == told for line in lines)
