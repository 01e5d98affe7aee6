"""Prompts for samples as kohya's scripts read them: a text file, one prompt a line, with options such as `--w 512`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gesso.errors import GessoError
from gesso.importers.draft import Draft
from gesso.importers.files import read

OPTIONS = {"w": "width", "h": "height", "d": "seed", "s": "steps", "l": "guidance", "g": "guidance", "n": "negative"}
KEY = "sample_prompts"
STEPS, GUIDANCE = 30, 7.5


def put(draft: Draft) -> None:
    """[sample] from the file of `sample_prompts`; gesso draws all prompts alike, so their options must agree."""
    path = draft.values[KEY]
    if not path:
        for name in (KEY, "sample_sampler", "sample_every_n_steps", "sample_every_n_epochs"):
            draft.say(name, "harmless", "nothing is drawn without sample_prompts")
        return
    if not str(path).endswith(".txt"):
        draft.say(KEY, "unsupported", "gesso reads prompts from a .txt, one a line; write them so")
        return
    try:
        text = read(Path(path).expanduser())
    except GessoError as error:
        draft.say(KEY, "unsupported", f"{path}: {error.what}")
        return
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = [_line(line) for line in lines]
    seeds: list[int] = []
    together: dict[str, Any] = {}
    for prompt, options in found:
        unknown = set(options) - set(OPTIONS.values())
        seed = options.pop("seed", None)
        seeds += [int(seed)] if seed is not None else []
        if unknown or any(together.setdefault(name, value) != value for name, value in options.items()):
            what = f'"{prompt}" has options of its own' if not unknown else f'"{prompt}" has --{min(unknown)}'
            draft.say(KEY, "unsupported", f"{what}; gesso draws all prompts alike, with one [sample]")
            return
    draft.put("sample.prompts", list(dict.fromkeys(prompt for prompt, _ in found if prompt)), KEY)
    if seeds:
        draft.put("sample.seeds", list(dict.fromkeys(seeds)), KEY, note="each prompt is drawn with each seed")
    draft.put("sample.steps", int(together.pop("steps", STEPS)), *([KEY] if "steps" in together else []))
    draft.put("sample.guidance", float(together.pop("guidance", GUIDANCE)))
    for name, value in together.items():
        draft.put(f"sample.{name}", value if name == "negative" else int(value), KEY)


def _line(line: str) -> tuple[str, dict[str, Any]]:
    prompt, *parts = re.split(r"\s+--", line)
    options = {}
    for part in parts:
        letter, _, value = part.partition(" ")
        name = OPTIONS.get(letter.lower(), letter)
        number = re.fullmatch(r"\d+(\.\d+)?", value.strip())
        if name != "negative" and not number:
            name = letter
        options[name] = value.strip()
    return prompt.strip(), options
