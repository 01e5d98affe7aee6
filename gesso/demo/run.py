"""The demos: a real run on the embedded model, and a verdict that is measured, not claimed.

`subject` teaches one thing from five pictures (DreamBooth by LoRA with prior preservation); `captions` teaches four
things from captioned pictures (text-to-image fine-tuning by LoRA, or of all weights).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from gesso import run
from gesso.arrays import Picture
from gesso.demo.glyphs import GROUNDS, KNOWN, caption
from gesso.demo.measure import judge, share
from gesso.demo.oracle import Oracle
from gesso.demo.pictures import CAPTIONED, RARE
from gesso.engines.engine import Engine, SampleRequest
from gesso.families import find
from gesso.job import create_engine
from gesso.listeners import Listeners
from gesso.models import resolve
from gesso.recipe import load
from gesso.report.section import Section, Verdict
from gesso.schema import Recipe

SUBJECT = "teddy bear"
EACH = 12
"""Pictures judged for each line of the verdict, before and after."""
STEPS, GUIDANCE = 15, 4.0
SEEDS = 1000
"""First seed of the judged pictures: none that the run itself has drawn."""


def main(
    name: str = "subject",
    *,
    out: str | None = None,
    full: bool = False,
    flags: Sequence[str] = (),
    dry_run: bool = False,
) -> int:
    """Run a demo into `out`; `full` trains all weights instead of a LoRA (captions only). The process exit code."""
    # One picture of each known thing goes along with the new ones, or the model would forget them.
    new, known = {"path": str(assets() / "captioned"), "repeats": 2}, {"path": str(assets() / "known")}
    defaults: dict[str, Any] = {"data": [new, known]}
    if name == "subject":
        subjects = assets() / "subjects"
        defaults = {
            "data": [{"path": str(subjects / "teddy-bear")}],
            "validate": {"path": str(subjects / "teddy-bear-unseen")},
        }
    if full:
        flags = [
            "--adapter.kind",
            "none",
            "--adapter.targets",
            "[]",
            "--optim.lr",
            "6e-4",
            "--train.steps",
            "400",
            "--out",
            "runs/demo-captions-full",
            *flags,
        ]
    if out:
        flags = [*flags, "--out", out]
    recipe = Path(str(files("gesso.demo") / "recipes" / f"{name}.toml"))
    return run.train(
        load(recipe, flags, defaults), dry_run=dry_run, extra=partial(verdict, questions=questions_of(name))
    )


def assets() -> Path:
    return Path(str(files("gesso.demo") / "assets"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is drawn, what the judge should see in it after training, and what share is good enough."""

    what: str
    asked: tuple[tuple[str, str], ...]
    """(prompt, name that the judge should give) of each picture."""
    at_least: float = 0.0
    at_most: float = 1.0
    lesson: bool = False
    """Whether this is what the run was to teach; the rest is what it was not to spoil."""


def on_grounds(thing: str, name: str, count: int = EACH) -> tuple[tuple[str, str], ...]:
    """`count` prompts for a thing, on one ground after the other."""
    grounds = list(GROUNDS)
    return tuple((caption(thing, grounds[number % len(grounds)]), name) for number in range(count))


OTHERS = tuple(
    (caption(thing.name, list(GROUNDS)[(3 * number) % len(GROUNDS)]), thing.name)
    for number, thing in enumerate(KNOWN[:: len(KNOWN) // 10])
)
"""Prompts that have nothing to do with the lesson."""


def questions_of(name: str) -> tuple[Question, ...]:
    """What a demo's verdict rests on."""
    if name == "subject":
        rare = f"{RARE} toy"
        return (
            Question(
                what=f'"a {rare}" shows the {SUBJECT}', asked=on_grounds(rare, SUBJECT), at_least=0.6, lesson=True
            ),
            Question(
                what=f'"a toy" shows the {SUBJECT} (it should not)', asked=on_grounds("toy", SUBJECT), at_most=0.25
            ),
            Question(what="other things are still drawn right", asked=OTHERS, at_least=0.8),
        )
    taught = (
        Question(what=f"the {name} is drawn right", asked=on_grounds(name, name, 6), at_least=0.6, lesson=True)
        for name in CAPTIONED
    )
    return (*taught, Question(what="other things are still drawn right", asked=OTHERS, at_least=0.7))


def verdict(out: Path, listeners: Listeners, *, questions: Sequence[Question]) -> list[Section]:
    """Ask the base and the trained model the same questions with the same seeds, and let the judge answer."""
    oracle, rows = Oracle(), []
    before, after = engine_of("tiny", engine_name(out)), engine_of(str(out))
    learned, kept = True, True
    for number, question in enumerate(questions):
        listeners.progress("questions to the model before and after", number, len(questions))
        names = [name for _, name in question.asked]
        shares = [
            sum(share([found], name) for found, name in zip(judge(oracle, drawn), names, strict=True)) / len(names)
            for drawn in (draw(engine, question) for engine in (before, after))
        ]
        good = question.at_least <= shares[1] <= question.at_most
        learned, kept = learned and (good or not question.lesson), kept and (good or question.lesson)
        count = len(names)
        rows.append(
            (question.what, f"{round(shares[0] * count)} of {count}", f"{round(shares[1] * count)} of {count}", good)
        )
    sentence = "It learned what it was shown" if learned else "It did not learn all that it was shown"
    if learned:
        sentence += ", and the rest still works" if kept else ", but the rest has suffered"
    sentence += "."
    for what, first, last, _ in rows:
        listeners.say(f"  {what}: {first} → {last}")
    listeners.say(sentence)
    return [Section("Measured", Verdict(rows=rows, sentence=sentence))]


def engine_name(run_folder: Path) -> str:
    """What executed the run that left this folder; PyTorch's where it is no run's."""
    settings = run_folder / "effective.json"
    return str(json.loads(settings.read_text(encoding="utf-8"))["engine"]["value"]) if settings.is_file() else "torch"


def engine_of(model: str, name: str = "") -> Engine:
    """An engine that draws with a model, its LoRA on top where it is one; a run's own engine where none is named."""
    source = resolve(model)
    engine = create_engine(Recipe.model_validate({"engine": name or engine_name(Path(model))}))
    engine.load(source.folder, find(source.pipeline))
    if source.lora:
        engine.add_lora(source.lora)
    return engine


def draw(engine: Engine, question: Question) -> list[Picture]:
    requests = [
        SampleRequest(prompt=prompt, seed=SEEDS + number, width=64, height=64, steps=STEPS, guidance=GUIDANCE)
        for number, (prompt, _) in enumerate(question.asked)
    ]
    return engine.sample(requests)
