"""`gesso train_text_to_image_lora.py …`: a command of the diffusers or mindone scripts, or of sd-scripts, as it stands.

It is translated into a recipe, which is shown with the flag behind every line, kept in the run folder and carried out.
A script that draws, captions or makes a data set becomes `gesso generate`, `caption` or `pack`. docs/scripts.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from gesso.errors import Exit, RecipeError

if TYPE_CHECKING:
    from gesso.importers.draft import Imported

SHELLS = ("sh", "bash")


def main(words: Sequence[str]) -> int:
    """Carry out the command; with `--dry-run` among its words only show what it becomes."""
    from gesso.cli import main as gesso
    from gesso.commands.import_ import report
    from gesso.importers import translate

    if {"-h", "--help"} & set(words):
        print(__doc__)
        return Exit.DONE
    dry_run = any(word in ("--dry-run", "--dry_run") for word in words)
    given = [word for word in words if word not in ("--dry-run", "--dry_run")]
    imported = translate(given[1:] if given[:1] and given[0] in SHELLS else given)
    if imported.stopped:
        print(report(replace(imported, entries=imported.stopped)), file=sys.stderr)
        count = len(imported.stopped)
        raise RecipeError(
            f"{f'{count} flags' if count > 1 else 'one flag'} cannot be carried out as said above",
            todo="give, change or leave out what is named, and run the command again",
        )
    print(f"{report(imported)}\n\n{imported.text}", flush=True)
    if imported.words:
        return gesso([*imported.words, *(["--dry-run"] if dry_run else [])])
    return _train(imported, dry_run=dry_run)


def _train(imported: Imported, *, dry_run: bool) -> int:
    from gesso import run
    from gesso.recipe import COMMAND, load

    with TemporaryDirectory(prefix="gesso-") as name:
        path = Path(name) / COMMAND
        path.write_text(imported.text, encoding="utf-8")
        loaded = replace(load(path), command=imported.text)
    checkpoint = Path(imported.checkpoint) if imported.checkpoint else None
    # What is wrong with data or model is said before there is a run folder.
    run.train(loaded, dry_run=True, checkpoint=checkpoint)
    if dry_run:
        return Exit.DONE
    code = run.train(loaded, checkpoint=checkpoint)
    if imported.kohya and code == Exit.DONE:
        _in_kohyas_form(Path(loaded.recipe.out), Path(imported.kohya))
    return code


def _in_kohyas_form(out: Path, target: Path) -> None:
    """The finished LoRA under kohya's names beside it, in place of one of an earlier, shorter run."""
    from gesso.formats.convert import Request, convert

    target.unlink(missing_ok=True)
    print("\n".join(convert(Request(source=out, target=target, form="kohya", family="sdxl"))))
