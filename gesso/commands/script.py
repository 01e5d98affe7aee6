"""`gesso train_text_to_image_lora.py …`: a command of the diffusers or mindone scripts, or of sd-scripts, as it stands.

It is translated into a recipe, which is shown with the flag behind every line, kept in the run folder and carried out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from gesso.errors import Exit, RecipeError

FILE = "command.toml"
"""The translated recipe, in the run folder."""


def main(words: Sequence[str]) -> int:
    """Carry out the command; with `--dry-run` among its words only show what it becomes."""
    from gesso import run
    from gesso.commands.import_ import report
    from gesso.importers import translate
    from gesso.recipe import load
    from gesso.storage import guard, write_bytes

    dry_run = any(word in ("--dry-run", "--dry_run") for word in words)
    imported = translate([word for word in words if word not in ("--dry-run", "--dry_run")])
    if imported.stopped:
        print(report(imported), file=sys.stderr)
        count = len(imported.stopped)
        raise RecipeError(
            f"{f'{count} flags' if count > 1 else 'one flag'} cannot be carried out as said above",
            todo="leave out or change what is named, and run the command again",
        )
    print(report(imported))
    print(f"\n{imported.text}")
    with TemporaryDirectory(prefix="gesso-") as name:
        path = Path(name) / FILE
        path.write_text(imported.text, encoding="utf-8")
        loaded = load(path)
    # What is wrong with data or model is said before there is a run folder.
    run.train(loaded, dry_run=True)
    if dry_run:
        return Exit.DONE
    out = Path(loaded.recipe.out)
    with guard(out, what=FILE, needed=len(imported.text.encode())):
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / FILE, imported.text.encode())
    return run.train(loaded)
