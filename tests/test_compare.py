"""`gesso compare`: the same prompts and seeds by several models, on one page."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from runs import gesso, pictures, recipe
from torch_runs import pixels

from gesso.compare import columns, compare
from gesso.errors import RecipeError
from gesso.generate import Request, generate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, blank: Path) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    pictures(folder / "pictures", 2)
    tables = {"train": {"steps": 4, "batch": 2}, "save": {"every": 2}, "adapter": {"rank": 2}}
    sample = {"prompts": ["a cat", "a dog"], "steps": 2, "every": 0}
    ended = gesso("train", recipe(folder, blank, engine="torch", sample=sample, optim={"lr": 0.05}, **tables))
    assert ended.returncode == 0, ended.stderr
    return folder / "out"


def heads(page: Path) -> list[str]:
    table = page.read_text(encoding="utf-8").split("<thead>")[1].split("</thead>")[0]
    return [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<th.*?</th>", table)]


def test_a_run_stands_for_its_base_and_its_checkpoints(tmp_path: Path, run: Path, blank: Path) -> None:
    command = ("compare", run, "--steps", 2, "--guidance", 2, "--out", tmp_path / "out")
    ended = gesso(*command)
    assert ended.returncode == 0, ended.stderr
    page = tmp_path / "out" / "index.html"
    assert ended.stdout.strip() == page.as_posix()
    assert heads(page) == ["Prompt", f"base {blank}", "out step 2", "out step 4"]
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/") == 6
    assert "http" not in html.replace("http-equiv", "")
    # Each is the picture that gesso generate draws of the same model.
    made = generate(
        Request(model=str(run / "checkpoint-4"), prompts=("a dog",), out=tmp_path / "one", steps=2, guidance=2.0)
    )
    (folder,) = [place for place in (tmp_path / "out").iterdir() if place.name.endswith("step-4")]
    assert np.array_equal(pixels(folder / "00001.png"), pixels(made[0]))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.png")}
    again = gesso(*command, "--prompt", "a cat", "--prompt", "a toy")
    assert again.returncode == 0, again.stderr
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.png")}
    assert files.items() >= before.items(), "what was there is not drawn again"
    assert len(files) == 9
    assert page.read_text(encoding="utf-8").count("data:image/") == 6


def test_strengths_are_columns(run: Path, blank: Path) -> None:
    found = columns([str(run / "checkpoint-2"), str(blank)], [0.5, 1.0])
    assert [(each.name.rpartition("/")[2], each.strength) for each in found] == [
        ("checkpoint-2, strength 0.5", 0.5),
        ("checkpoint-2, strength 1", 1.0),
        (blank.name, None),
    ]


def test_loras_are_columns_beside_their_base(tmp_path: Path, run: Path, blank: Path) -> None:
    lora = run / "checkpoint-4" / "pytorch_lora_weights.safetensors"
    request = Request(model=str(blank), prompts=("a cat",), out=tmp_path / "out", steps=2, guidance=2.0)
    wanted = columns([str(blank)], [0.0, 1.0], [lora])
    assert [(each.name, each.strength) for each in wanted] == [
        (str(blank), None),
        (f"{lora}, strength 0", 0.0),
        (f"{lora}, strength 1", 1.0),
    ]
    page = compare(request, wanted, lambda *_: None)
    assert page.read_text(encoding="utf-8").count("data:image/") == 3
    base, none, whole = (pixels(place / "00000.png") for place in sorted(page.parent.iterdir()) if place.is_dir())
    assert np.array_equal(base, none)
    assert not np.array_equal(base, whole)
    with pytest.raises(RecipeError, match=r"--lora goes on top of the first model, and .* is a run"):
        columns([str(run)], [], [lora])


def test_the_page_shows_what_is_asked_for_now(tmp_path: Path, blank: Path) -> None:
    shown = []
    for steps in (2, 3, 2):
        request = Request(model=str(blank), prompts=("a cat",), out=tmp_path, steps=steps, guidance=2.0)
        page = compare(request, columns([str(blank)], []), lambda *_: None)
        shown += re.findall(r'src="(data:image/[^"]+)"', page.read_text(encoding="utf-8"))
    first, second, again = shown
    assert first == again != second
    assert len(list(tmp_path.rglob("*.png"))) == 2, "what is there is not drawn again"


def test_what_cannot_be_compared_is_said_before_anything_is_drawn(tmp_path: Path, run: Path, blank: Path) -> None:
    with pytest.raises(RecipeError, match="compared with itself"):
        columns([str(blank), str(blank)], [])
    for words, says in (
        ((blank,), "which prompts?"),
        ((blank, "--prompt", "a", "--strength", "0.5"), "none of the models has a LoRA"),
        ((blank, tmp_path / "none", "--prompt", "a"), "there is no model"),
        ((run, "--width", 65), "must be divisible by 8"),
    ):
        ended = gesso("compare", *words, "--out", tmp_path / "out")
        assert ended.returncode == 2, ended.stderr
        assert says in ended.stderr
    assert not (tmp_path / "out").exists()
