"""In place of tensorboardX where it is not installed: a writer that writes nothing."""

from typing import Any


class SummaryWriter:
    """What mindone's scripts ask of one."""

    def __init__(self, *arguments: Any, **rest: Any) -> None: ...

    def add_scalar(self, *arguments: Any, **rest: Any) -> None: ...

    def add_scalars(self, *arguments: Any, **rest: Any) -> None: ...

    def close(self) -> None: ...
