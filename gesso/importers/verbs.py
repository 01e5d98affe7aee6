"""A command that trains nothing, as one of gesso's own: what becomes of every flag, and the words of the verb."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from gesso.importers.draft import STOPPING, Draft, Imported
from gesso.importers.rows import Row


class Wish(Draft):
    """A draft whose settings are flags of the verb that `words` begin with: "--steps" instead of "train.steps".

    A name without dashes is a value that stands alone.
    """

    def __init__(self, source: str, rows: Mapping[str, Row], words: Sequence[str]) -> None:
        super().__init__(source, rows, dashes=True)
        self._words = tuple(words)

    def finish(self) -> Imported:
        """The words of the verb with the report; none where a flag stops it."""
        entries = self.entries()
        words = list(self._words)
        for flag, setting in self.settings.items():
            value = setting.value
            if not flag.startswith("-"):
                words.append(str(value))
            elif value is True:
                words.append(flag)
            elif value is not False:
                # One word, for a value may begin with a dash.
                words += [f"{flag}={each}" for each in (value if isinstance(value, list) else [value])]
        if any(entry.fate in STOPPING for entry in entries):
            return Imported(source=self.source, entries=entries, text="")
        return Imported(source=self.source, entries=entries, text=shlex.join(["gesso", *words]), words=tuple(words))
