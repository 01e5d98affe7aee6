"""Whether the libraries here are ones that the MindSpore engine works with. Imports none of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from gesso.errors import DeviceError

Lookup = Callable[[str], str]
MISSING = "is not installed"
SETUP = "set up an environment of its own as docs/mindspore.md says; `gesso doctor --engine mindspore` tells more"


@dataclass(frozen=True, slots=True)
class Need:
    """Versions from `least` on and below `below`, and why."""

    least: tuple[int, ...]
    below: tuple[int, ...]
    why: str


NEEDS: Mapping[str, Need] = {
    "mindspore": Need((2, 7, 1), (2, 11), "newer ones have not been tried"),
    "mindone": Need((0, 5), (0, 6), "newer ones have not been tried"),
    "numpy": Need((1, 26), (2,), "MindSpore is built for numpy 1 and dies at random with numpy 2"),
    "transformers": Need((4, 57, 1), (4, 57, 2), "mindone 0.5 imports names that other versions do not have"),
    "huggingface-hub": Need((0, 34), (1,), "this transformers refuses others, and the PyTorch engine wants newer ones"),
}


def problems(look_up: Lookup = version) -> dict[str, str]:
    """By library: what is wrong with it, as the rest of a sentence that begins with its name."""
    found: dict[str, str] = {}
    for name, need in NEEDS.items():
        try:
            here = look_up(name)
        except PackageNotFoundError:
            found[name] = MISSING
            continue
        if not need.least <= numbers(here) < need.below:
            least, below = (".".join(map(str, each)) for each in (need.least, need.below))
            found[name] = f"is {here}, but must be at least {least} and below {below}: {need.why}"
    return found


def problem(look_up: Lookup = version) -> str | None:
    """What is wrong with the libraries, in a sentence; None where the engine can start.

    Without MindSpore this is the environment of something else, whose other libraries are as that wants them.
    """
    found = problems(look_up)
    if found.get("mindspore") == MISSING:
        found = {name: what for name, what in found.items() if what == MISSING}
    return f'engine = "mindspore": {"; ".join(f"{name} {what}" for name, what in found.items())}' if found else None


def check() -> None:
    """DeviceError where the engine cannot start."""
    found = problem()
    if found is not None:
        raise DeviceError(found, todo=SETUP)


def broken(error: Exception) -> DeviceError:
    """What to say where libraries of the right versions cannot be imported, for want of what they stand on."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DeviceError(f'engine = "mindspore": MindSpore and mindone do not start: {first}', todo=SETUP)


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: "2.10.0rc1" is (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
