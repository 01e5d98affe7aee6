"""The run on the terminal: a live block where somebody watches, plain lines where a log is kept."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TextIO

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gesso.events import Event, Finished, Paused, Sampled, Saved, Started, Stepped, Validated, Warned
from gesso.trackers.status import Status, duration, size

Mode = Literal["auto", "live", "lines", "none"]

FRAME_SECONDS = 0.25
LINE_SECONDS = 5.0


class Console:
    """Shows a run on `stream` (stdout when left out; pass stderr to keep stdout for `--json`).

    auto is live on a terminal that can move its cursor and show the bar, and lines anywhere else. Drawing is limited to
    four frames a second, so it costs the loop nothing that can be measured. Colours follow NO_COLOR and TERM.
    """

    def __init__(
        self, mode: Mode = "auto", *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._clock = clock
        self._terminal = Terminal(file=self._stream, highlight=False, emoji=False, markup=False)
        self.mode: Mode = _settled(self._stream) if mode == "auto" else mode
        self._status = Status()
        self._doing: tuple[str, int, int] | None = None
        self._live: Live | None = None
        self._drawn = -math.inf

    def handle(self, event: Event) -> None:
        """Show an event. A terminal that has gone away silences this view; the run goes on."""
        self._status.take(event)
        if isinstance(event, Started | Stepped):
            self._doing = None
        self._guarded(lambda: self._block(event) if self.mode == "live" else self._line(event))

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far the work before training is: `what` is done for `done` of `total`."""
        self._doing = (what, done, total)
        last = done >= total

        def show() -> None:
            if self.mode == "live":
                self._draw(force=last)
            elif self._due(LINE_SECONDS) or last:
                self._write(event="progress", what=what, done=f"{done}/{total}")

        self._guarded(show)

    def say(self, text: str) -> None:
        """Show a line of plain words, above the live block while there is one."""
        lines = [clean(line) for line in text.splitlines()]

        def show() -> None:
            if self.mode == "live":
                self._terminal.print(Text("\n".join(f" {line}" for line in lines)), soft_wrap=True)
            else:
                self._put("\n".join(lines))

        self._guarded(show)

    def close(self) -> None:
        """Leave the last frame standing and give the cursor back."""
        if self._live is not None:
            live, self._live = self._live, None
            self._guarded(live.stop)

    def _guarded(self, show: Callable[[], None]) -> None:
        if self.mode == "none":
            return
        try:
            show()
        except (OSError, ValueError):  # a closed pipe or a dropped connection; nobody is left to be told
            self.mode = "none"

    def _due(self, seconds: float) -> bool:
        if self._clock() - self._drawn < seconds:
            return False
        self._drawn = self._clock()
        return True

    # -- live ---------------------------------------------------------------------------------------------------------

    def _block(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._terminal.print(Text(f" ! step {event.step}: {clean(event.message)}", style="yellow"), soft_wrap=True)
        if isinstance(event, Started) and event.resumed:
            self.say(f"resumed from step {event.step}")
        self._draw(force=not isinstance(event, Stepped) or event.step >= self._status.steps)
        if isinstance(event, Paused | Finished):
            self.close()
            self._terminal.print(Text(f" {_ending(event)}", style="bold"), soft_wrap=True)

    def _draw(self, *, force: bool) -> None:
        begun = self._status.state != "waiting" or self._doing is not None
        if not begun or (not self._due(FRAME_SECONDS) and not force):
            return
        if self._live is None:
            self._live = Live(console=self._terminal, auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(view(self._status, self._doing), refresh=True)

    # -- lines --------------------------------------------------------------------------------------------------------

    def _line(self, event: Event) -> None:
        if isinstance(event, Stepped):
            status = self._status
            if self._due(LINE_SECONDS) or event.step >= status.steps:
                known = {"held_out": status.held_out} if math.isfinite(status.held_out) else {}
                self._write(
                    event="step",
                    step=f"{event.step}/{status.steps}",
                    loss=status.loss,
                    **known,
                    lr=event.lr,
                    steps_per_s=status.pace,
                    left=duration(status.left),
                )
        elif fields := _fields(event):
            self._write(**fields)

    def _write(self, **fields: Any) -> None:
        self._put(f"time={datetime.now():%H:%M:%S} " + " ".join(f"{key}={_value(v)}" for key, v in fields.items()))

    def _put(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._stream.flush()


def view(status: Status, doing: tuple[str, int, int] | None = None) -> RenderableType:
    """The live block: what runs, how far it is, how it goes; a single bar while `doing` something before training."""
    what, done, total = doing or ("", status.step, status.steps)
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    share = f"{100 * done / total:.0f} %" if total else ""
    pace = (status.pace, status.left) if not doing and status.state == "running" else (math.nan, math.nan)
    words = [f"{done}/{total}" if total else what, share]
    if math.isfinite(pace[0]):
        words += [f"{pace[0]:.3g} steps/s", f"{duration(pace[1])} left"]
    bar.add_row(ProgressBar(total=max(total, 1), completed=done), "  ".join(filter(None, words)))
    if doing:
        return Group(Text(f" {clean(what)}", style="dim"), bar)
    title = Text(" gesso ", style="bold").append(f" {clean(status.run)}", style="bold cyan")
    if status.what:
        title.append(f"  {clean(status.what)}", style="dim")
    return Group(title, bar, _numbers(status))


def _numbers(status: Status) -> Text:
    text = Text(" ")
    if math.isfinite(status.loss):
        text.append("loss ", style="dim").append(f"{status.loss:.4g}   ")
    if math.isfinite(status.held_out):
        error = f" ± {status.held_out_error:.2g}" if status.held_out_error > 0 else ""
        text.append("held-out ", style="dim").append(f"{status.held_out:.4g}{error}   ")
    if status.skipped:
        text.append(f"{status.skipped} skipped   ", style="yellow")
    if status.checkpoint:
        text.append("saved ", style="dim").append(f"{clean(status.checkpoint)}   ")
    if status.samples:
        text.append("samples ", style="dim").append(clean(status.samples))
    return text


def clean(text: str) -> str:
    """Text that cannot steer a terminal: control characters, which captions and file names may hold, become spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def _settled(stream: TextIO) -> Mode:
    watched = stream.isatty() and os.environ.get("TERM", "") != "dumb"
    return "live" if watched and "utf" in (getattr(stream, "encoding", "") or "").lower() else "lines"


def _fields(event: Event) -> dict[str, Any]:
    head: dict[str, Any] = {"event": event.name, "step": event.step}
    match event:
        case Started():
            said = {"run": event.run, "steps": event.steps, "batch": event.batch, "pictures": event.pictures}
            if event.class_pictures:
                said["class_pictures"] = event.class_pictures
            return {**head, **said, "trainable": event.trainable, "resumed": event.resumed, "what": event.what}
        case Validated():
            known = {"error": event.error} if event.pictures > 1 else {}  # one picture tells no error
            return {**head, "held_out": event.loss, **known, "pictures": event.pictures}
        case Sampled():
            folder = event.samples[0].file.rpartition("/")[0] if event.samples else ""
            return {**head, "pictures": len(event.samples), "folder": folder, "took": duration(event.seconds)}
        case Saved():
            return {**head, "folder": event.folder, "size": size(event.bytes), "took": duration(event.seconds)}
        case Warned():
            return {**head, "message": event.message}
        case Paused():
            return {**head, "reason": event.reason}
        case Finished():
            return {**head, "took": duration(event.seconds), "files": ", ".join(event.files)}
        case _:
            return {}


def _ending(event: Paused | Finished) -> str:
    if isinstance(event, Paused):
        return f"Paused at step {event.step}: {clean(event.reason)}. Start the same command again to go on."
    use = f" Use {clean(', '.join(event.files))}." if event.files else ""
    return f"Done in {duration(event.seconds)}.{use}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else clean(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\\') else text
