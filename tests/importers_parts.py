"""What the importers' tests share: folders of pictures, and a recipe that must load."""

from __future__ import annotations

from pathlib import Path

from gesso.importers import translate
from gesso.importers.draft import Imported
from gesso.recipe import load
from gesso.schema import Recipe


def folder(path: Path, pictures: int, captions: str = "") -> Path:
    """A folder with pictures that are only counted."""
    path.mkdir(parents=True)
    for number in range(pictures):
        (path / f"{number}.png").touch()
        if captions:
            (path / f"{number}{captions}").write_text("a dog", encoding="utf-8")
    return path


def recipe(imported: Imported) -> Recipe:
    """The recipe, loaded from its text as `gesso train` would."""
    assert imported.stopped == (), [(entry.key, entry.note) for entry in imported.stopped]
    Path("imported.toml").write_text(imported.text, encoding="utf-8")
    return load(Path("imported.toml")).recipe


def command(text: str) -> Recipe:
    """The recipe of a command."""
    return recipe(translate([text]))


def stops(*words: str) -> dict[str, str]:
    """What stops an import, by key."""
    imported = translate(list(words))
    assert imported.text == ""
    return {entry.key: entry.note for entry in imported.stopped}


def fates(imported: Imported) -> dict[str, str]:
    return {entry.key: entry.fate for entry in imported.entries}
