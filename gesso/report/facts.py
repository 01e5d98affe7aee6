"""What was taught, which file to use, and the recipe: the reference half of the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from gesso.formats import embeddings, usage
from gesso.formats.adapter import LORAS
from gesso.formats.peft import KINDS
from gesso.models import scheduler_changes
from gesso.report.html import Markup, element, join, scroll
from gesso.report.reading import Run
from gesso.schema import ObjectiveTable
from gesso.trackers.status import duration

METHODS = {"none": "Full fine-tuning", "ti": "Textual inversion", "lora": "LoRA", "dora": "DoRA"}
METHODS |= {"loha": "LoHa", "lokr": "LoKr", "oft": "OFT"}
GROUPS = {"text_encoder": "text encoder", "text_encoder_2": "second text encoder", "tokens": "words"}
CHANGING = ("prediction", "zero_snr")
"""What an objective may change in the model's scheduler."""


def taught(run: Run) -> Markup | None:
    """The table of what was trained on what, how and where."""
    rows = [(name, value) for name, value in _facts(run) if value not in (None, "")]
    if not rows:
        return None
    body = [element("div", element("dt", name), element("dd", value)) for name, value in rows]
    return element("section", element("h2", "What was taught"), element("dl", *body, class_="facts"))


def use(run: Run) -> Markup | None:
    """The file to use and the lines that load it."""
    if not run.values and not run.events:
        return None
    place, trigger = run.place, _trigger(run)
    result = [str(file) for file in run.latest("finished").get("files", ())]
    shell = f"gesso generate --model {shlex.quote(place)} --prompt {shlex.quote(trigger)} --out pictures"
    named = join(*_between([element("code", f"{place}/{file}".replace("/./", "/")) for file in result], ", "))
    if result and not run.adapter:
        which = element("p", "The result is the folder ", _code(place), ", a whole model in diffusers' layout.")
    elif result:
        which = element("p", "The result is ", named, ".")
    else:
        which = element("p", "The result will be in ", _code(place), " once the run has finished.")
    words = element("p", "Words to use: ", element("q", trigger)) if run.values.get("data.0.prompt") else None
    kept = _kept(run)
    which_states = "Earlier states" if result else "Checkpoints so far"
    earlier = element("p", f"{which_states}, each of which can stand in its place: ", *kept, ".") if kept else None
    return element(
        "section",
        element("h2", "How to use it"),
        which,
        words,
        earlier,
        element("h3", "On the command line"),
        _snippet(shell),
        *_other_programs(run, place, bool(result)),
        element("h3", "In Python, with diffusers"),
        _snippet(_python(run, place, trigger)),
        class_="use",
    )


def _other_programs(run: Run, place: str, finished: bool) -> Iterable[Markup]:
    """The commands that write the forms most other programs read, where there are such."""
    kind = str(run.values.get("adapter.kind", ""))
    form = {"none": "single", **dict.fromkeys(("lora", "dora", "loha", "lokr"), "kohya")}.get(kind)
    wanted = [(form, f"{run.name}.safetensors")] if form else []
    wanted += [("a1111", f"{run.name}-words")] if "tokens.0.name" in run.values else []
    if finished and wanted:
        lines = [f"gesso export {shlex.quote(place)} --to {form} --out {shlex.quote(out)}" for form, out in wanted]
        yield element("h3", "For A1111, Forge and ComfyUI")
        yield _snippet("\n".join(lines))


def _kept(run: Run) -> list[object]:
    """The checkpoints that are there; not that of the last step of a finished run, which is the result."""
    steps = sorted({int(event["step"]) for event in run.of("saved")})
    steps = steps[:-1] if run.last.get("event") == "finished" else steps
    there = [f"checkpoint-{step}" for step in steps if (run.folder / f"checkpoint-{step}").is_dir()]
    return _between([_code(f"{run.place}/{name}") for name in there], ", ")


def recipe(run: Run) -> Markup | None:
    """Every value of the recipe with where it came from, folded away."""
    if not run.values:
        return None
    chosen = {key for key in run.values if run.origins.get(key, "default") != "default"}
    rows = [
        element(
            "tr",
            element("th", element("code", key), scope="row"),
            element("td", element("code", json.dumps(value, ensure_ascii=False))),
            element("td", run.origins.get(key, "")),
            class_="chosen" if key in chosen else None,
        )
        for key, value in sorted(run.values.items(), key=lambda item: item[0] not in chosen)
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("Key", "Value", "From")))
    table = element("table", element("thead", head), element("tbody", *rows), class_="recipe")
    summary = element("summary", "The recipe", element("small", f" {len(chosen)} of {len(run.values)} values chosen"))
    return element("section", element("details", summary, scroll(table, "The recipe")))


def warnings(run: Run) -> Markup | None:
    """What the run warned of, each wording once."""
    told = dict.fromkeys(f"Step {event['step']}: {event.get('message', '')}" for event in run.of("warned"))
    if not told:
        return None
    items = [element("li", line) for line in list(told)[:20]]
    if len(told) > 20:
        items.append(element("li", f"and {len(told) - 20} more, in events.jsonl"))
    return element("section", element("h2", "Warnings"), element("ul", *items, class_="warnings"))


def _facts(run: Run) -> Iterable[tuple[str, str | None]]:
    values, started = run.values, run.latest("started")
    yield "Base model", _text(values.get("model.base"))
    yield "Method", _method(run)
    yield "Rank", _text(values.get("adapter.rank")) if values.get("adapter.kind") in (*LORAS, *KINDS) else None
    yield "Steps", _count(started.get("steps", values.get("train.steps")))
    yield "Batch", _text(started.get("batch", values.get("train.batch")))
    yield "Learning rate", _rates(run)
    resolution = values.get("train.resolution")
    yield "Resolution", f"{resolution} by {resolution} px" if resolution else None
    yield "Seed", _text(values.get("seed"))
    yield "Training pictures", _count(started.get("pictures", len(run.shown) or None))
    yield "Held-out pictures", _count(run.latest("validated").get("pictures") or None)
    yield "Class pictures", None if _taught_class(run) else _count(started.get("class_pictures") or None)
    yield "Trainable parameters", _count(started.get("trainable") or None)
    yield "Device", _text(run.environment.get("device"))
    yield "Precision", _text(run.environment.get("precision", values.get("train.precision")))
    yield "Time", duration(run.seconds) if run.seconds is not None else None


def _rates(run: Run) -> str | None:
    """The learning rate, of each group where they learn at rates of their own, and the schedule of all."""
    rate, schedule = run.values.get("optim.lr"), str(run.values.get("optim.schedule", "")).replace("_", " ")
    if not isinstance(rate, int | float):
        return None
    words = ["tokens"] if "tokens.0.name" in run.values else []
    groups = [*(run.values.get("model.train", ()) if run.values.get("adapter.kind") != "ti" else ()), *words]
    text = run.values.get("optim.text_encoder_lr") or rate
    own = {
        "text_encoder": text,
        "text_encoder_2": run.values.get("optim.text_encoder_2_lr") or text,
        "tokens": run.values.get("optim.token_lr") or rate,
    }
    rates = {GROUPS.get(group, group): own.get(group, rate) for group in groups}
    if len(set(rates.values())) > 1:
        named = [f"{value:g} ({group})" for group, value in rates.items()]
    else:
        named = [f"{value:g}" for value in [*rates.values(), rate][:1]]
    return ", ".join([*named, *([schedule] if schedule else [])])


def _method(run: Run) -> str | None:
    if "adapter.kind" not in run.values:
        return None
    kind = METHODS.get(str(run.values["adapter.kind"]), str(run.values["adapter.kind"]))
    if "tokens.0.name" in run.values and run.values["adapter.kind"] != "ti":
        kind += " and new words"
    if not run.values.get("prior.prompt") and not run.latest("started").get("class_pictures"):
        return kind
    if _taught_class(run):
        return f"{kind} with prior preservation by the base model's own answers"
    return f"{kind} with prior preservation (DreamBooth)"


def _taught_class(run: Run) -> bool:
    """Whether the base model's answers, and not class pictures, keep the class."""
    return bool(run.values.get("prior.kind") == "teacher")


def _trigger(run: Run) -> str:
    """The words that call up what was learned: the one prompt of all pictures, else a prompt that is sampled."""
    if prompt := run.values.get("data.0.prompt"):
        return str(prompt)
    if run.drawn:
        return run.drawn[0].prompt
    if prompts := run.values.get("sample.prompts"):
        return str(prompts[0])
    return next((caption for shown in run.shown for caption in shown.captions), "")


def _python(run: Run, place: str, prompt: str) -> str:
    """The lines that load the result with diffusers."""

    def quoted(text: object) -> str:
        return json.dumps(str(text), ensure_ascii=False)

    values = run.values
    base = str(values.get("model.base", ""))
    changing = {key: values[f"objective.{key}"] for key in CHANGING if values.get(f"objective.{key}") is not None}
    if base == "tiny":  # this one comes with gesso, and diffusers knows folders only
        base = str(Path(str(files("gesso.demo"))) / "assets" / "tiny")
    learned = [path for path in embeddings.files(run.folder) if path.name in run.latest("finished").get("files", ())]
    load = usage.lines(
        kind=str(values.get("adapter.kind", "none")),
        parts=[str(part) for part in values.get("model.train", ())],
        base=base,
        folder=place,
        revision=str(values.get("model.revision", "")),
        vae=str(values.get("model.vae", "")),
        scheduler=scheduler_changes(ObjectiveTable.model_validate(changing)),
        words=embeddings.usage(learned, place),
    )
    return f'{load}pipe({quoted(prompt)}).images[0].save("picture.png")'


def _snippet(text: str) -> Markup:
    return element("pre", element("code", text), tabindex="0")


def _code(text: str) -> Markup:
    return element("code", text)


def _between(items: list[Markup], mark: str) -> list[object]:
    return [part for number, item in enumerate(items) for part in ((mark, item) if number else (item,))]


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
