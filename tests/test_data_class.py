"""Pictures of the class as data: [[data]] with group = "class", and is_reg in kohya's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import events, gesso, pictures, recipe
from sources_parts import parquet, picture, rows

from gesso import gathering
from gesso.errors import DataError, GessoError, RecipeError
from gesso.gathering import class_pictures
from gesso.recipe import load
from gesso.schema import Recipe


def chosen(*tables: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"data": tables, **more})


@pytest.fixture
def places(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    picture(tmp_path / "dogs" / "a.png")
    for name in ("b.png", "c.png"):
        picture(tmp_path / "class" / name, "blue")
    (tmp_path / "class" / "b.txt").write_text("a dog in a park")
    own = {"path": str(tmp_path / "dogs"), "prompt": "a photo of sks dog"}
    return own, {"path": str(tmp_path / "class"), "group": "class"}


def test_class_tables_are_learned_beside_the_others(places: tuple[dict[str, Any], dict[str, Any]]) -> None:
    own, of_class = places
    made = chosen(own, of_class | {"repeats": 2, "weight": 3.0}, prior={"prompt": "a dog"})
    learning, holding = gathering.pictures(made)
    assert [record.captions for record in learning] == [("a photo of sks dog",)]
    assert holding == []
    found = class_pictures(made)
    assert [record.captions for record in found] == [("a dog in a park",), ("a dog",)] * 2
    assert {(record.group, record.weight) for record in found} == {("class", 3.0)}
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption: c\.png"):
        class_pictures(chosen(own, of_class))
    assert class_pictures(chosen(own)) == []


def test_any_format_can_hold_the_class(places: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", rows(5))
    found = class_pictures(chosen(places[0], {"path": str(file), "group": "class", "max_samples": 3}))
    assert len(found) == 3
    assert {record.group for record in found} == {"class"}


def test_regularisation_subsets_of_kohyas_file_are_the_class(
    places: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "dataset.toml"
    file.write_text(
        f"""
        [[datasets]]
        [[datasets.subsets]]
        image_dir = "{tmp_path.as_posix()}/dogs"
        class_tokens = "sks dog"
        num_repeats = 2
        [[datasets.subsets]]
        is_reg = true
        image_dir = "{tmp_path.as_posix()}/class"
        class_tokens = "dog"
        """
    )
    made = chosen({"path": str(file)})
    assert [record.captions for record in gathering.pictures(made)[0]] == [("sks dog",)] * 2
    assert [record.captions for record in class_pictures(made)] == [("a dog in a park",), ("dog",)]
    for prior in ({"prompt": "dog", "path": str(tmp_path / "class")}, {"prompt": "dog", "kind": "teacher"}):
        with pytest.raises(RecipeError, match="leave one of the two out"):
            class_pictures(chosen({"path": str(file)}, prior=prior))
    assert load(None, ["--data.path", str(file), "--prior.weight", "0.5"]).recipe.prior.weight == 0.5
    file.write_text(file.read_text().replace("[[datasets.subsets]]", "[[datasets.subsets]]\nis_reg = true", 1).replace(
        "is_reg = true\n        is_reg", "is_reg"))  # fmt: skip
    with pytest.raises(DataError, match="no picture to learn from, only of the class"):
        gathering.pictures(made)


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        ({"path": "other", "prompt": "a dog"}, "both give pictures of the class"),
        ({"kind": "teacher", "prompt": "a dog"}, "does without"),
        ({"pictures": 5, "prompt": "a dog"}, r"prior\.pictures has no effect with .*nothing is drawn"),
        ({"guidance": 2.0, "prompt": "a dog"}, r"prior\.guidance has no effect"),
    ],
)
def test_what_contradicts_class_tables_is_refused(
    places: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, prior: dict[str, Any], reason: str
) -> None:
    own, of_class = places
    file = recipe(tmp_path, tmp_path, data=[own, of_class], prior=prior)  # type: ignore[arg-type]
    with pytest.raises(GessoError, match=reason):
        load(file)
    assert load(recipe(tmp_path, tmp_path, data=[own, of_class], prior={"weight": 0.5}))  # type: ignore[arg-type]


def test_a_recipe_with_nothing_but_the_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='every \\[\\[data\\]\\] has group = "class"'):
        load(None, ["--data.path", "photos", "--data.group", "class"])
    with pytest.raises(RecipeError, match=r"prior\.weight has no effect without prior\.prompt"):
        load(None, ["--data.path", "photos", "--prior.weight", "0.5"])


def test_a_run_sees_as_many_of_the_class_in_every_step(linear: Path, tmp_path: Path) -> None:
    """And goes on exactly; the class's weight changes what is learned."""
    own, of_class = pictures(tmp_path / "pictures", 3), pictures(tmp_path / "class", 5, side=40)
    tables = [{"path": str(own)}, {"path": str(of_class), "group": "class"}]
    results = []
    for name, weight in (("one", 1.0), ("same", 1.0), ("half", 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        file = recipe(folder, linear, data=tables, prior={"weight": weight})  # type: ignore[arg-type]
        if name == "same":
            assert gesso("train", file, "--train.steps", "4").returncode == 0
        done = gesso("train", file)
        assert done.returncode == 0, done.stderr
        (started, *_) = events(folder / "out", "started")
        assert (started["pictures"], started["class_pictures"]) == (3, 5)
        lock = json.loads((folder / "out" / "data.lock.json").read_text())
        assert [row["group"] for row in lock["pictures"]] == ["instance"] * 3 + ["class"] * 5
        results.append((folder / "out" / "pytorch_lora_weights.safetensors").read_bytes())
    assert results[0] == results[1]
    assert results[0] != results[2]
    shown = gesso("train", tmp_path / "one" / "recipe.toml", "--dry-run").stdout
    assert "class     5 pictures of your own" in shown
    report = (tmp_path / "one" / "out" / "report.html").read_text()
    assert "LoRA with prior preservation (DreamBooth)" in report
    repeated = gesso("train", tmp_path / "one" / "recipe.toml", "--dry-run", "--data.0.repeats", "2").stdout
    assert "pictures  3, with repeats 6 an epoch" in repeated
    assert "8.0 epochs" in repeated
