"""Runs that learn words: what they leave is what diffusers loads, goes on bit for bit, and is a model to draw with."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import hashes, pictures
from torch_runs import GUIDANCE, LORA, STEPS, go, pixels, torch_recipe

from gesso import cli
from gesso.arrays import Picture
from gesso.engines.torch.engine import Engine
from gesso.errors import Exit, RecipeError
from gesso.formats import embeddings
from gesso.generate import Request, generate, outline, prepare
from gesso.models import resolve, whole

# diffusers' Euler scheduler hands a tensor to numpy in a way that numpy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

PROMPT = "a <dog> beside a <hat>"
TOKENS = [{"name": "<dog>", "init": "red cat", "vectors": 2}, {"name": "<hat>"}]
TI = {"kind": "ti"}
SAMPLE = {"prompts": [PROMPT], "seeds": [7], "steps": STEPS, "guidance": GUIDANCE, "every": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = pictures(tmp_path / "pictures", 4)
    for number in range(4):
        (place / f"{number}.txt").write_text(f"a {('<dog>', '<hat>')[number % 2]}, number {number}", encoding="utf-8")
    return tmp_path


def recipe_of(folder: Path, base: Path, **tables: Any) -> Path:
    """Six steps on both words; those of an adapter only when it is asked for."""
    given: dict[str, Any] = {"adapter": TI, "tokens": TOKENS, "sample": SAMPLE, "optim": {"lr": 0.1}, **tables}
    path = torch_recipe(folder, base, **given)
    if given["adapter"] is TI:  # the rank of an adapter that is not there is refused
        path.write_text(re.sub(r"(?m)^rank = .*\n", "", path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def by_the_card(out: Path, base: Path) -> Picture:
    """The model card's own lines, with the real paths, drawn with the settings of the runs."""
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    lines = code[1].replace("path/of/this/folder", str(out)).replace("path/of/the/base/model", str(base))
    settings = (
        f", num_inference_steps={STEPS}, guidance_scale={GUIDANCE}, width=64, height=64, "
        "generator=torch.Generator('cpu').manual_seed(7))"
    )
    found = f"pipe({PROMPT!r})".replace("'", '"')
    assert found in lines
    names: dict[str, Any] = {"torch": torch}
    exec(lines.replace(found, found[:-1] + settings), names)
    return np.asarray(names["picture"])


def again(model: Path, out: Path, **given: Any) -> Picture:
    request = Request(
        model=str(model), prompts=(PROMPT,), out=out, seeds=(7,), steps=STEPS, guidance=GUIDANCE, width=64, height=64,
        **given,
    )  # fmt: skip
    return pixels(generate(request)[0])


@pytest.mark.parametrize("name", ["blank", "blank_xl"])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_run_leaves_words_that_diffusers_draws_with(
    folder: Path, name: str, ema: float, request: pytest.FixtureRequest
) -> None:
    """The last sample, pixel for pixel: by the card's lines, from the run, and with --words on the base."""
    base, out = request.getfixturevalue(name), folder / "out"
    assert go(recipe_of(folder, base, optim={"lr": 0.1, "ema": ema})) == Exit.DONE
    first, last = (pixels(out / f"samples/step-{step}/p00-s7.png") for step in (0, 6))
    assert not np.array_equal(first, last), "nothing was learned"
    assert np.array_equal(last, by_the_card(out, base))
    assert np.array_equal(last, again(out, folder / "drawn"))
    assert np.array_equal(last, again(base, folder / "words", words=tuple(embeddings.files(out))))
    if not ema:
        middle = pixels(out / "samples/step-4/p00-s7.png")
        assert np.array_equal(middle, again(out / "checkpoint-4", folder / "middle"))
    assert not list(out.glob("*lora*"))
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "The learned words `<dog>`, `<hat>` for" in readme
    assert "  - textual_inversion\n" in readme


@pytest.mark.parametrize("pivot", [0.0, 0.5])
def test_words_and_a_lora_are_learned_in_one_run(folder: Path, blank: Path, pivot: float) -> None:
    adapter = {**LORA, "pivot": pivot}
    out = folder / "out"
    assert go(recipe_of(folder, blank, adapter=adapter, save={"every": 3})) == Exit.DONE
    last = pixels(out / "samples/step-6/p00-s7.png")
    assert np.array_equal(last, by_the_card(out, blank))
    assert np.array_equal(last, again(out, folder / "drawn"))
    files = ["learned_embeds.safetensors", "learned_embeds-2.safetensors", "pytorch_lora_weights.safetensors"]
    turn, end = (hashes(out / f"checkpoint-{step}", "*.safetensors") for step in (3, 6))
    kept = [name for name in files if turn[name] == end[name]]
    assert kept == (files[:2] if pivot else []), "with a pivot, the words rest once the adapter learns"


@pytest.mark.parametrize("adapter", [TI, {**LORA, "pivot": 0.5}], ids=["ti", "pivot"])
def test_two_roads_one_end(folder: Path, blank: Path, adapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps straight, and two, SIGTERM, four more: the same bytes."""
    noisy = {
        "optim": {"lr": 0.1, "ema": 0.5},
        "train": {"flip": True, "crop": "random", "caption_dropout": 0.2, "micro_batch": 1},
        "save": {"every": 2},
    }
    path = recipe_of(folder, blank, adapter=adapter, **noisy)
    assert go(path, "--out", folder / "straight") == Exit.DONE
    plain, steps = Engine.step, iter(range(1, 3))

    def step(self: Engine, *micro: Any, **options: Any) -> Any:
        if next(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *micro, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        assert go(path, "--out", folder / "stopped") == Exit.STOPPED
    assert go(path, "--out", folder / "stopped") == Exit.DONE
    for pattern in ("*.safetensors", "checkpoint-6/*.safetensors"):
        found = hashes(folder / "stopped", pattern)
        assert found
        assert found == hashes(folder / "straight", pattern)


def test_a_run_of_words_is_no_base_to_train_on(folder: Path, blank: Path) -> None:
    assert go(recipe_of(folder, blank)) == Exit.DONE
    source = resolve(str(folder / "out"))
    assert [path.name for path in source.words] == ["learned_embeds.safetensors", "learned_embeds-2.safetensors"]
    assert source.folder == blank
    assert source.lora is None
    with pytest.raises(RecipeError, match="learned words"):
        whole(source)


def test_words_of_another_base_are_refused_before_anything_is_loaded(folder: Path, blank: Path, blank_xl: Path) -> None:
    assert go(recipe_of(folder, blank)) == Exit.DONE
    words = embeddings.files(folder / "out")
    request = Request(model=str(blank_xl), prompts=("a <dog>",), out=folder / "drawn", words=(words[0],))
    with pytest.raises(RecipeError, match='the word "<dog>" was learned for another base'):
        prepare(request)
    with pytest.raises(RecipeError, match='two files have the word "<dog>"'):
        prepare(Request(model=str(folder / "out"), prompts=("a <dog>",), out=folder / "drawn", words=(words[0],)))
    with pytest.raises(RecipeError, match="not a whole safetensors file"):
        prepare(Request(model=str(blank), prompts=("a",), out=folder / "drawn", words=(folder / "recipe.toml",)))
    fine = prepare(Request(model=str(blank), prompts=("a <dog>",), out=folder / "drawn", words=(words[0],)))
    assert "word      <dog>" in outline(fine)
    assert fine.notes["words"] == ["learned_embeds.safetensors"]


def test_the_flag_of_generate(folder: Path, blank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(recipe_of(folder, blank)) == Exit.DONE
    file = folder / "out" / embeddings.FILE
    drawn = folder / "drawn"
    capsys.readouterr()
    arguments = ["generate", "--model", str(blank), "--words", str(file), "--prompt", "a <dog>", "--out", str(drawn)]
    assert cli.main([*arguments, "--steps", "2", "--device", "cpu"]) == Exit.DONE
    assert capsys.readouterr().out.splitlines() == [(drawn / "00000.png").as_posix()]


def test_a_word_that_nothing_uses_is_refused(folder: Path, blank: Path) -> None:
    path = recipe_of(folder, blank, tokens=[*TOKENS, {"name": "<cat>"}])
    with pytest.raises(RecipeError, match="<cat>"):
        go(path)
    assert not (folder / "out" / "checkpoint-6").exists()
