"""Names of what a map has computed, under which datasets would keep it; nothing is kept here."""

from typing import Any


class Hasher:
    """What mindone's scripts ask of one."""

    @staticmethod
    def hash(value: Any) -> str:
        return str(hash(str(value)))
