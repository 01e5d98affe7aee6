"""The command line: `gesso VERB …`.

A verb is a module of gesso/commands with `arguments(parser)` and `main(options) -> exit code`; only the one that is
asked for is imported, so that help is quick. What goes wrong is said on standard error in the words of gesso/errors.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

from gesso import __version__
from gesso.errors import Exit, GessoError, RecipeError

VERBS = {
    "demo": "see it work: teach the embedded little model one new thing, on any computer",
    "doctor": "what this computer can do, what is missing, and how to mend it",
    "new": "look at a folder of pictures and write a recipe for it",
    "check": "name all that is wrong with your pictures and captions, and what a run will take",
    "caption": "have a model say what is in your pictures, and write it beside them",
    "cache": "encode a recipe's pictures and captions ahead, and look after what is kept",
    "pack": "put pictures and captions into few large files: save_to_disk, Parquet, WebDataset",
    "train": "carry out a recipe, or go on with a run where it stopped",
    "generate": "draw pictures with a model, a run or a checkpoint",
    "compare": "the same prompts and seeds by several models, side by side on a page",
    "pick": "which checkpoint of a run to keep, and why",
    "inspect": "say what a model file is, without running anything of it",
    "convert": "rewrite a model or LoRA file in another form",
    "export": "write what was trained in a form that other programs load, and check it",
    "import": "make a recipe of another trainer's configuration or command",
}
STARTERS = ("accelerate", "bash", "msrun", "python", "python3", "sh", "torchrun")
"""Programs that the commands of other trainers' scripts begin with; gesso takes such a command as it stands."""
CRASHED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the process exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    given = [each for each in given if each != "--debug"]
    try:
        with _closed_pipe_is_quiet():
            return _run(given)
    except GessoError as error:
        if debug:
            traceback.print_exc()
        print(f"gesso: {error}", file=sys.stderr)
        return int(error.exit)
    except SystemExit as ended:  # argparse has shown its help
        return int(ended.code or 0)
    except KeyboardInterrupt as stopped:
        print(f"gesso: stopped ({str(stopped) or 'Ctrl-C'})", file=sys.stderr)
        return Exit.STOPPED
    except Exception as error:
        _unexpected(error, debug)
        return CRASHED


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return Exit.DONE if given else Exit.RECIPE
    if given[0] in ("-V", "--version"):
        print(f"gesso {__version__}")
        return Exit.DONE
    if given[0].endswith((".py", ".sh")) or given[0] in STARTERS:
        return int(import_module("gesso.commands.script").main(given))
    verb = given[0].replace("_", "-")
    if verb not in VERBS:
        meant = get_close_matches(verb, VERBS, n=1)
        todo = f"did you mean `gesso {meant[0]}`?" if meant else f"use one of {', '.join(VERBS)}"
        raise RecipeError(f"there is no verb {given[0]}", todo=todo)
    module = import_module(f"gesso.commands.{verb}{'_' * iskeyword(verb)}")
    parser = Parser(
        prog=f"gesso {verb}",
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    module.arguments(parser)
    everywhere = parser.add_argument_group("everywhere")
    everywhere.add_argument("-h", "--help", action="help", help="show this and end")
    everywhere.add_argument("--debug", action="store_true", help="show where in the program an error arose")
    return int(module.main(parser.read(given[1:])))


def overview() -> str:
    """What `gesso --help` shows."""
    verbs = "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items())
    return f"""\
usage: gesso VERB …

gesso {__version__} teaches text-to-image diffusion models your own pictures.

{verbs}

gesso train_text_to_image_lora.py …  carries out a diffusers, mindone or sd-scripts command

gesso VERB --help  tells about a verb, with examples
gesso --version    its version
--debug            with any verb: show where in the program an error arose

To begin:  gesso demo"""


class Parser(argparse.ArgumentParser):
    """argparse in the house's manner: dashes and underscores alike, errors as RecipeError with the nearest flag.

    With `rest` set, what the parser does not know is left in `options.rest` for the verb to read.
    """

    rest = False

    def read(self, given: Sequence[str]) -> argparse.Namespace:
        words = [self._dashed(word) for word in given]
        known = {flag: action for action in self._actions for flag in action.option_strings}
        if self.rest:
            own, others = self._divided(given, known)
            options = self.parse_args(own)
            options.rest = others
            return options
        for word in words:  # before argparse, which would first ask for what the misspelt flag was to give
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                meant = get_close_matches(flag, known, n=1)
                self.error(f"there is no flag {flag}", f"did you mean {meant[0]}? " if meant else "")
        return self.parse_args(words)

    def _divided(self, given: Sequence[str], known: Mapping[str, argparse.Action]) -> tuple[list[str], list[str]]:
        """The flags of the verb's own with their values, and everything else."""
        own: list[str] = []
        others: list[str] = []
        valued = False
        for word in given:
            dashed = self._dashed(word)
            flag, equals, _ = dashed.partition("=")
            mine = flag in known
            (own if mine or valued else others).append(dashed if mine else word)
            valued = mine and not equals and known[flag].nargs != 0
        return own, others

    @staticmethod
    def _dashed(word: str) -> str:
        if not word.startswith("--"):
            return word
        flag, equals, value = word.partition("=")
        return flag.replace("_", "-") + equals + value

    def error(self, message: str, hint: str = "") -> NoReturn:
        raise RecipeError(message, todo=f"{hint}`{self.prog} --help` shows what there is")


def _unexpected(error: Exception, debug: bool) -> None:
    """One line about a fault of gesso itself; `__notes__` name the log that has the rest."""
    if debug:
        traceback.print_exception(error)
    kind = type(error).__name__
    first = str(error).strip().split("\n")[0]
    print(f"gesso met an error it does not know: {kind}: {first}; run again with --debug", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)


@contextlib.contextmanager
def _closed_pipe_is_quiet() -> Iterator[None]:
    """`gesso … | head` ends when the reader does, without a word."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end; that must not fail aloud.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.DONE) from None


if __name__ == "__main__":
    sys.exit(main())
