"""`python -m gesso.importers > docs/import.md`: the page about every foreign key, made from the tables."""

from __future__ import annotations

from collections.abc import Mapping

from gesso.importers import ai_toolkit_keys, kohya_flags, onetrainer_keys
from gesso.importers.optimizers import KNOWN
from gesso.importers.rows import Row

HEAD = """\
# Coming from another trainer

<!-- Made from gesso/importers by `python -m gesso.importers > docs/import.md`; a test holds it current. -->

    gesso import train.sh                      # the shell file with the command
    gesso import accelerate launch train_dreambooth.py --instance_data_dir=dog …
    gesso import kohya.toml --dry-run          # kohya's sd-scripts, with the data set file that it names
    gesso import job.yaml --out dog.toml       # ai-toolkit
    gesso import config.json --json            # OneTrainer

writes a recipe in which a comment behind each line says which key of the source it came from, and reports what became
of **every** key:

| fate | meaning |
|---|---|
| in the recipe | mapped, by itself or together with other keys |
| harmless | changes nothing that is learned; the reason is given |
| differs | gesso goes another way, says so, and carries on |
| stops | nothing is written; one sentence says what to do instead. A value that asks for nothing does not stop |

* A key that the source does not have stops too, with the nearest name.
* What the source would take by default is written down where gesso's default is another.
* Of a command only the words are read: `$NAME` where the text sets it, `$(date +%Y)`, quotes, comments, continued
  lines. Nothing is executed, and nothing else that only a shell can do is guessed at.
* `train.batch` is pictures on a device × accumulation × devices; `train.micro_batch` is what is on the device at once.
* Steps and warm-up are optimiser steps. Where a script counts otherwise, the report says so.
* Folders that must be counted or looked into (kohya's `10_sks dog`, class pictures) must be where the source says, seen
  from the current folder.
* YAML tags and anchors are not read; passwords and tokens are never shown or written.
"""
FATES = {
    "mapped": "in the recipe",
    "joined": "in the recipe",
    "harmless": "harmless",
    "differs": "differs",
    "unsupported": "stops",
}
DIFFUSERS = """
## diffusers and mindone

[scripts.md](scripts.md) has the flags of their scripts, and those of Text-to-Image-Summary and mindone's
stable_diffusion_v2. `gesso train_dreambooth.py …` carries out such a command without an import.
"""
KOHYA = """
## kohya's sd-scripts

`{scripts}`. A lone `.toml` with these keys is read as a file for `--config_file`. Class pictures take half of each
batch there; gesso adds as many to its batch, so `train.batch` is halved, or the steps are where the batch is odd.
Networks: {networks}.
"""
OPTIMIZERS = """
## Optimisers

Options that a source does not write are those of the library that it uses.

| there | `optim.name` | |
|---|---|---|
"""


def page() -> str:
    """docs/import.md as one text."""
    networks = "`networks.lora`, `networks.loha`, `networks.lokr`, and `lycoris.kohya` with lora, locon, loha, lokr"
    scripts = "`, `".join(kohya_flags.SCRIPTS)
    parts = [HEAD, DIFFUSERS.lstrip("\n")]
    parts += [KOHYA.lstrip("\n").format(scripts=scripts, networks=networks), _table("flag", kohya_flags.FLAGS)]
    parts += ["### The data set file\n", _table("key, at any level", kohya_flags.SET_FILE)]
    parts += ["## ai-toolkit\n", _table("key of the process", ai_toolkit_keys.KEYS)]
    parts += ["## OneTrainer\n", _table("key", onetrainer_keys.KEYS)]
    known = [f"| {name} | {each.name} | {each.note} |" for name, each in KNOWN.items()]
    parts.append(OPTIMIZERS.lstrip("\n") + "\n".join(known) + "\n")
    return "\n".join(parts)


def _table(title: str, rows: Mapping[str, Row]) -> str:
    lines = [f"| {title} | fate | recipe | |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {_cells(row)} |" for name, row in rows.items())]) + "\n"


def _cells(row: Row) -> str:
    keys = ", ".join(
        f"`{each.strip()}`" if "." in each or each == "out" else each.strip() for each in row.to.split(",")
    )
    if row.to == "seed":
        keys = "`seed`"
    return " | ".join(cell.replace("|", "\\|") for cell in (FATES[row.action], keys if row.to else "", row.why))


if __name__ == "__main__":
    print(page(), end="")
