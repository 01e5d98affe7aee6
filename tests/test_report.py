"""The report page: everything in it, nothing outside it, and no caption that becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from made_run import GROUNDS, NASTY, PROMPTS, STEPS, kite, make_run
from PIL import Image

from gesso.errors import StorageError
from gesso.events import Finished, Sample, Sampled, Started
from gesso.report import page, reading
from gesso.report.html import element
from gesso.report.section import Section, Verdict
from gesso.trackers.jsonl import Jsonl

VOID = {"meta", "img", "br"}


MEASURED = Section(
    "Did it learn the kite?",
    Verdict(
        rows=[
            ("Pictures in which an independent classifier sees the kite", "1 of 32", "30 of 32", True),
            ("Likeness to the training pictures", 0.21, 0.88, True),
            ("Other things still drawn as before", 0.96, 0.95, True),
            ("Distance to plain pictures of other things", "12.5 units", "13.1 units", False),
        ],
        sentence="It learned the kite: 30 of 32 pictures show it, against 1 of 32 before.",
    ),
)


class Reader(HTMLParser):
    """Collects what the tests ask about, and insists on well-nested elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def parsed(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "kite")


@pytest.fixture(scope="module")
def report(run_folder: Path) -> Path:
    note = Section("A note", f"plain {NASTY}")
    return page.write(run_folder, extra=[MEASURED, note, Section("Raw", element("p", "made", id="raw"))])


def test_it_reaches_for_nothing_outside_itself(report: Path) -> None:
    reader = parsed(report)
    for tag, attributes in reader.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/"), (tag, name)
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"(https?:)?//[a-z0-9]+\.[a-z]", text)
    assert "@import" not in text
    assert "url(" not in text.replace("url(#clip-", "")
    policy = next(found for found in reader.all("meta") if "http-equiv" in found)
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    assert report.name == "report.html"


def test_what_users_wrote_stays_text(report: Path) -> None:
    reader = parsed(report)
    assert len(reader.all("script")) == 1
    assert NASTY in reader.text
    assert f"plain {NASTY}" in reader.text
    assert {"id": "raw"} in reader.all("p")


def test_every_cell_of_the_grid_is_there(report: Path) -> None:
    reader = parsed(report)
    alts = [image.get("alt") or "" for image in reader.all("img")]
    for prompt in PROMPTS:
        for step in STEPS:
            for seed in (0, 1):
                assert f"{prompt}, seed {seed}, step {step}" in alts
    assert [cell.get("data-step") for cell in reader.all("td") if "data-step" in cell] == [
        f"step {step}" for _ in range(6) for step in STEPS
    ]
    assert "missing" not in reader.text


def test_sections_come_in_order(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    expected = ["Before and after", "Did it learn the kite?", "Every prompt, step by step", "Loss"]
    assert titles[:4] == expected
    assert titles[4:] == [
        "A note",
        "Raw",
        "What was taught",
        "The pictures and their captions",
        "How to use it",
        "Warnings",
    ]
    assert text.index("30 of 32 pictures show it") < text.index("<h2>Before and after")
    assert text.index("What it was shown") < text.index("Did it learn")


def test_numbers_and_instructions(report: Path) -> None:
    text = parsed(report).text
    for said in ("98,304", "LoRA with prior preservation", "cpu, 2 threads", "optimiser steps", "mean squared error"):
        assert said in text
    assert f'DiffusionPipeline.from_pretrained("{files("gesso.demo") / "assets" / "tiny"}")' in text
    assert 'pipe.load_lora_weights("runs/kite")' in text
    assert "gesso generate --model runs/kite --prompt 'a photo of sks kite' --out pictures" in text
    assert "runs/kite/pytorch_lora_weights.safetensors" in text
    assert "fell from 0.213 to 0.12" in text
    assert "Finished 20 steps in 41 s." in text
    assert "kite.toml:9" in text


def test_a_finished_run_that_is_started_again_keeps_its_time(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "kite")
    tracker = Jsonl(folder / "events.jsonl")
    tracker.handle(Started(step=20, run="kite", steps=20, batch=4, pictures=5, trainable=9, what="LoRA", resumed=True))
    tracker.handle(Finished(step=20, seconds=0.00054, files=["pytorch_lora_weights.safetensors"]))
    tracker.close()
    text = parsed(page.write(folder)).text
    assert "Finished 20 steps in 6 s." in text, "20 steps of 0.3 s"
    assert "0.00054" not in text


def test_it_is_small_and_the_same_each_time(report: Path, run_folder: Path, tmp_path: Path) -> None:
    assert report.stat().st_size < 800_000
    first = page.page(reading.read(run_folder))
    assert first == page.page(reading.read(run_folder))
    assert not list(run_folder.glob(".report*"))


def test_verdict_bars_show_shares_and_only_shares() -> None:
    drawn = MEASURED.html()
    widths = re.findall(r"width:([\d.]+)%", drawn)
    assert widths == ["3.1", "93.8", "21.0", "88.0", "96.0", "95.0"]
    assert drawn.count('class="good"') == 3
    assert drawn.count('class="bad"') == 1


def test_a_young_paused_or_broken_run_has_a_page_too(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "Not started yet" in parsed(page.write(empty)).text
    paused = make_run(tmp_path / "paused", finished=False)
    (paused / "samples/step-20/p00-s0.png").write_bytes(b"not a picture")
    (tmp_path / "photos/0.png").unlink()
    text = parsed(page.write(paused)).text
    assert "Paused at step 20 of 20: SIGTERM." in text
    assert text.count("missing") == 2  # in the pair and in the grid
    with pytest.raises(StorageError, match="no run folder"):
        page.write(tmp_path / "nowhere")


def test_thumbs_stand_in_for_pictures_that_have_moved(run_folder: Path, tmp_path: Path) -> None:
    run = reading.read(run_folder)
    gone = reading.Run(folder=run.folder, events=run.events, last=run.last, drawn=run.drawn)
    assert "What it was shown" not in page.page(gone)
    handed = [reading.Shown(file="a.tar/1.png", captions=("a kite",), picture=kite(GROUNDS[0], 1.0, 3))]
    text = page.page(gone, pictures=handed)
    assert "What it was shown" in text
    assert "1.png" in text


def test_training_pictures_are_found_from_above_their_folders_and_only_unchanged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "kite")
    lock = json.loads((run / "data.lock.json").read_text())
    class_picture = {**lock["pictures"][0], "group": "class"}
    for entry in lock["pictures"]:
        entry["file"] = f"photos/{entry['file']}"
    (run / "data.lock.json").write_text(json.dumps({"pictures": [*lock["pictures"], class_picture]}))
    shown = reading.read(run).shown
    assert [each.find() for each in shown] == [tmp_path / f"photos/{number}.png" for number in range(5)]
    assert [each.file for each in reading.read(run).of_class] == [class_picture["file"]]
    Image.fromarray(kite(GROUNDS[0], 0.0, 3)).save(tmp_path / "photos/2.png")
    assert [each.find() is None for each in shown] == [False, False, True, False, False]


def test_a_whole_model_is_loaded_as_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "kite")
    values = json.loads((run / "effective.json").read_text())["recipe"]
    values["adapter"]["kind"] = "none"
    (run / "effective.json").write_text(json.dumps(values))
    text = parsed(page.write(run)).text
    assert 'DiffusionPipeline.from_pretrained("runs/kite")' in text
    assert "load_lora_weights" not in text
    assert "Full fine-tuning with prior preservation" in text


def test_a_sample_outside_the_run_folder_is_not_shown(tmp_path: Path) -> None:
    Image.fromarray(kite(GROUNDS[0], 1.0, 1)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    tracker = Jsonl(run / "events.jsonl")
    tracker.handle(Sampled(samples=[Sample(prompt="p", seed=0, file="../secret.png")]))
    tracker.close()
    assert reading.read(run).drawn == []


def test_recipe_with_origins_at_its_leaves() -> None:
    values, origins = reading.recipe(
        {"train": {"steps": {"value": 9, "origin": "flag"}}, "sample": {"prompts": {"value": ["a"], "origin": "file"}}}
    )
    assert values == {"train.steps": 9, "sample.prompts": ["a"]}
    assert origins == {"train.steps": "flag", "sample.prompts": "file"}
