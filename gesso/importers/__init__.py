"""Configurations of other trainers, translated into a recipe with a report: nothing is left out without a word.

Each source has a table that says of every key what becomes of it (rows.py), and one file for keys that act together.
Only facts about formats are known here; nothing of the source runs, and no file is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from gesso.errors import RecipeError
from gesso.importers import ai_toolkit, diffusers, kohya, mindone_sd, onetrainer, shell, summary
from gesso.importers.diffusers_flags import SCRIPTS
from gesso.importers.draft import Imported
from gesso.importers.files import read

__all__ = ["translate"]
CHOICE = "a command or its shell file, kohya's .toml, ai-toolkit's .yaml, OneTrainer's .json"


def translate(words: Sequence[str], script: str = "") -> Imported:
    """The recipe behind `words`: one file, one command in quotes, or the words of a command.

    `script` names the kohya script that a lone .toml is for. RecipeError for what is no such thing.
    """
    if not words:
        raise RecipeError("what is to be imported?", todo=f"name {CHOICE}")
    if any("\ud800" <= letter <= "\udfff" for word in words for letter in word):
        raise RecipeError("the command is not valid text in this terminal's encoding", todo="write it in UTF-8")
    path = Path(words[0]).expanduser()
    if len(words) == 1 and path.suffix == ".py" and not any(letter.isspace() for letter in words[0]):
        return _commands([list(words)], "the command", script)
    if len(words) == 1 and (_is_file(path) or not any(letter.isspace() for letter in words[0])):
        return _file(path, script)
    if len(words) == 1:
        return _commands(shell.commands(words[0]), "the command", script)
    return _commands([list(words)], "the command", script)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a whole command may be longer than any name of a file
        return False


def _file(path: Path, script: str) -> Imported:
    ending = path.suffix.lower()
    if ending == ".toml":
        return kohya.from_toml(path, script)
    if ending in (".yaml", ".yml"):
        return ai_toolkit.translate(read(path), str(path))
    if ending == ".json":
        content = read(path)
        if ai_toolkit.is_one(content):
            return ai_toolkit.translate(content, str(path))
        return onetrainer.translate(content, path)
    if ending not in (".sh", ".bash", ".txt", ".bat", ""):
        raise RecipeError(f"gesso does not know what a {ending} file is", where=str(path), todo=f"name {CHOICE}")
    if not path.is_file():
        raise RecipeError("there is no such file", where=str(path), todo=f"name {CHOICE}")
    return _commands(shell.commands(read(path)), str(path), script)


OTHERS = {
    mindone_sd.DRAWING: mindone_sd.drawing,
    "generate_captions.py": summary.captions,
    "create_dataset.py": summary.dataset,
}
"""Scripts that train nothing: each becomes another verb of gesso."""


def _translated(command: shell.Command) -> Imported:
    if command.script in OTHERS:
        return OTHERS[command.script](command)
    if command.script in kohya.SCRIPTS:
        return kohya.translate(command)
    return mindone_sd.dreambooth(command) if mindone_sd.is_dreambooth(command) else diffusers.translate(command)


def _commands(found: list[list[str]], where: str, script: str) -> Imported:
    """The one training command among several; others, such as `cd` or `pip install`, are left alone."""
    known = [*SCRIPTS, *OTHERS, *kohya.SCRIPTS]
    commands = [command for words in found if (command := shell.command(words)) is not None]
    training = [command for command in commands if command.script in known]
    if len(training) > 1:
        several = ", ".join(command.script for command in training)
        raise RecipeError(f"it has several training commands: {several}", where=where, todo="import them one by one")
    if training:
        return _translated(*training)
    for command in commands:
        configs = [
            word.partition("=")[2] or word for word in command.words if word.endswith((".yaml", ".yml", ".json"))
        ]
        if command.script in ("run.py", "train.py") and len(configs) == 1:
            return _file(Path(configs[0]).expanduser(), script)
    if not commands:
        raise RecipeError("no command of a training script is in it", where=where, todo=f"name {CHOICE}")
    names = [command.script for command in commands]
    if other := next((kohya.OTHERS[name] for name in names if name in kohya.OTHERS), ""):
        raise RecipeError(f"{names[0]} {other}", where=where, todo=f"gesso translates {', '.join(kohya.SCRIPTS)}")
    meant = get_close_matches(names[0], known, n=1, cutoff=0.6)
    todo = f"did you mean {meant[0]}?" if meant else f"gesso knows {', '.join(known)}"
    raise RecipeError(f"gesso does not know the script {names[0]}", where=where, todo=todo)
