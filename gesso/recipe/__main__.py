"""`python -m gesso.recipe > docs/recipe.md`: the page about every key, made from the schema."""

from __future__ import annotations

from gesso.recipe.keys import Key, allowed, keys, show, tables

HEAD = """\
# The recipe

<!-- Made from gesso/schema.py by `python -m gesso.recipe > docs/recipe.md`; a test holds it current. -->

A recipe is one TOML file with everything a run depends on. Start with `gesso new PHOTOS`, which writes one, or with a
file of `recipes/`. Any key is a flag too, and a flag wins over the file:

    gesso train dog.toml --train.steps 400 --out runs/dog2

* Dashes and underscores are alike: `--train.micro-batch 2`.
* A switch needs no value: `--train.flip`; `--train.flip false` turns it off.
* A list is one value, `--sample.prompts '["a dog", "a cat"]'`, or the flag once for each item.
  Of any other flag given twice, the last counts.
* `--data.path photos` is the first `[[data]]` table, `--data.1.path more` the second.
* **Paths are relative to the current folder**, not to the file.
* Steps are optimiser steps and the batch is the global batch: devices and `micro_batch` change neither.
* An unknown key, a value out of range, or a key that could have no effect stops the run before it starts, and all
  such problems are listed at once. Only what a flag switches off over the file may stay in the file.
* The run folder keeps `recipe.toml` (what you chose) and `effective.json` (every value, and whether it came from the
  file, a flag or the default).
"""

WORDS = {
    "model": "What to start from.",
    "adapter": "What is trained: a small adapter, or the weights themselves.",
    "data": "Where the pictures are. May be given several times, for several folders.",
    "rules": "What is different for some layers of the adapter, in order; each must match a layer.",
    "tokens": "New words for captions and prompts (textual inversion), alone or beside an adapter (pivotal tuning).",
    "prior": "Prior preservation (DreamBooth): the class that your subject belongs to stays what it was.",
    "objective": "What the network is asked, and how much each noise level counts.",
    "train": "How long, how many at once, and how pictures are prepared.",
    "optim": "The optimiser and its learning rate.",
    "sample": "Pictures drawn while training, always with the same prompts and seeds.",
    "validate": "A loss on pictures that are not trained on, at fixed noise and timesteps.",
    "save": "Checkpoints.",
    "track": "Who listens.",
    "hub": "The finished run on the Hub, where you ask for it.",
    "cache": "Encoded pictures and captions, kept so that they are made once.",
    "torch": "What only the PyTorch engine has.",
    "mindspore": "What only the MindSpore engine has.",
}


def page() -> str:
    """docs/recipe.md as one text."""
    parts = [HEAD, _section("", "Top of the file", "Keys before the first table.")]
    for table, repeated in tables().items():
        parts.append(_section(table, f"`[[{table}]]`" if repeated else f"`[{table}]`", WORDS[table]))
    return "\n".join(parts)


def _section(table: str, title: str, words: str) -> str:
    rows = [key for name, key in keys().items() if name.rpartition(".")[0] == table]
    lines = [f"## {title}", "", words, "", "| key | value | default | |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, rows)]) + "\n"


def _row(key: Key) -> str:
    default = "" if key.default is None else f"`{show(key.default)}`"
    if key.required:
        default = "required"
    cells = (f"`{key.name.rpartition('.')[2]}`", allowed(key.schema), default, key.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
