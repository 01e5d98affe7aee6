"""A recipe in epochs, files and rates, as the steps, prompts and groups that a run takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import events, gesso, pictures, recipe

from gesso import settings
from gesso.errors import Exit, RecipeError
from gesso.families import find
from gesso.recipe import load
from gesso.schema import Recipe


def made(**tables: Any) -> Recipe:
    return Recipe.model_validate({"data": [{"path": "photos"}], **tables})


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [
        (1, 4, 4, 1),
        (1, 5, 4, 2),
        (4, 5, 4, 5),
        (3, 7, 2, 11),
        (0.5, 100, 4, 13),
        (0.001, 5, 4, 1),
        (0.1, 30, 1, 3),  # 0.1 · 30 is a little over 3 in floating point
        (1e4, 20, 8, 25_000),
    ],
)
def test_epochs_in_steps(epochs: float, rows: int, batch: int, steps: int) -> None:
    assert settings.in_steps(epochs, rows, batch) == steps
    assert steps * batch >= epochs * rows - 1e-6, "every picture has been seen so often"
    assert steps == 1 or (steps - 1) * batch < epochs * rows, "and no step more than that takes"


def test_what_is_in_steps_already_stays_as_it_is() -> None:
    given = made(train={"steps": 7}, sample={"prompts": ["a"], "every": 3}, save={"every": 2})
    assert settings.settled(given, 5) == given


def test_settled_has_neither_epochs_nor_files_left(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("b\nc\n", encoding="utf-8")
    given = made(
        train={"epochs": 10, "batch": 4},
        sample={"prompts": ["a"], "prompts_file": str(tmp_path / "prompts.txt"), "every_epochs": 2},
        validate={"holdout": 0.2, "every_epochs": 0.5},
        save={"every_epochs": 5},
    )
    found = settings.settled(given, 6)
    assert (found.train.steps, found.train.epochs) == (15, None)
    assert (found.sample.every, found.validate_.every, found.save.every) == (3, 1, 8)
    assert (found.sample.every_epochs, found.validate_.every_epochs, found.save.every_epochs) == (0, 0, 0)
    assert (found.sample.prompts, found.sample.prompts_file) == (("a", "b", "c"), "")
    assert settings.settled(found, 6) == found
    assert [request.prompt for request in settings.requests(found, 64)] == ["a", "b", "c"]
    assert given.train.epochs == 10, "what the user wrote is not changed"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"", "holds no text"),
        (b"\n  \r\n\t\n", "holds no text"),
        (bytes(range(256)), "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"),
        (b"an owl\nPK\x03\x04\x00\x00", "NUL character"),
        (b"a dog\na cat\na dog\n", '"a dog" is there twice'),
        (b"an owl\n", '"an owl" is there twice'),
    ],
)
def test_a_prompts_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    given = made(sample={"prompts": ["an owl"], "prompts_file": str(path)})
    with pytest.raises(RecipeError, match=told) as raised:
        settings.settled(given, 5)
    assert "sample.prompts_file: " in raised.value.what
    assert raised.value.where == str(path)
    assert raised.value.todo
    assert "data.encoding" not in str(raised.value), "that key is for captions"


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sample.prompts_file: cannot be read"):
        settings.settled(made(sample={"prompts_file": str(tmp_path)}), 5)


def test_the_captions_of_a_teacher_are_read_before_anything_is_loaded(tmp_path: Path) -> None:
    given = made(prior={"prompt": "a toy", "kind": "teacher", "captions": str(tmp_path / "none.txt")})
    with pytest.raises(RecipeError, match=r"prior.captions: cannot be read"):
        settings.settled(given, 5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_any_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "prompts.txt").write_bytes("  ein Kürbis\r\n\r\n猫 🐈\n".encode(encoding))
    assert settings.lines(tmp_path / "prompts.txt", "sample.prompts_file") == ["ein Kürbis", "猫 🐈"]


def test_a_bad_prompts_file_ends_the_command_with_a_sentence(tmp_path: Path, linear: Path) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, linear, sample={"prompts_file": str(tmp_path / "prompts.txt")})
    done = gesso("train", path)
    assert done.returncode == Exit.RECIPE
    assert "sample.prompts_file: cannot be read" in done.stderr
    assert "What to do:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "prompts.txt").write_text("only here\n", encoding="utf-8")
    assert gesso("train", path).returncode == Exit.DONE
    drawn = events(tmp_path / "out", "sampled")
    assert [[sample["prompt"] for sample in event["samples"]] for event in drawn] == [["only here"]] * 2


def test_words_that_learn_alone_have_every_step_whatever_the_file_says_of_a_pivot(tmp_path: Path) -> None:
    """A flag that switches the adapter off over a file leaves the file's pivot without a meaning."""
    (tmp_path / "recipe.toml").write_text(
        '[adapter]\nkind = "lora"\npivot = 0.5\n[[data]]\npath = "photos"\n[[tokens]]\nname = "<it>"\n',
        encoding="utf-8",
    )
    both = load(tmp_path / "recipe.toml", ["--train.steps", "10"]).recipe
    alone = load(tmp_path / "recipe.toml", ["--train.steps", "10", "--adapter.kind", "ti"]).recipe
    assert {name: each.steps for name, each in settings.courses(both).items()} == {
        "unet": range(5, 10),
        "tokens": range(5),
    }
    assert {name: each.steps for name, each in settings.courses(alone).items()} == {"tokens": range(10)}
    assert settings.settled(alone.model_copy(update={"optim": both.optim.model_copy(update={"warmup": 6})}), 4)


def test_a_flag_may_make_an_oft_of_a_lora_with_alpha_and_dropout(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[adapter]\nkind = "lora"\nrank = 4\nalpha = 2\ndropout = 0.1\n[[data]]\npath = "photos"\n', encoding="utf-8"
    )
    found = settings.adapter(
        load(tmp_path / "recipe.toml", ["--adapter.kind", "oft"]).recipe, find("StableDiffusionPipeline")
    )
    assert found is not None
    assert (found.kind, found.rank, found.alpha, found.dropout) == ("oft", 4, 4.0, 0.0)
