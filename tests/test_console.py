"""The run on the terminal and in a log."""

from __future__ import annotations

import io
import math
import os
import re

import pytest
from test_trackers import started, stepped, story

from gesso.events import Paused, Started, Warned
from gesso.trackers.console import Console
from gesso.trackers.status import Average, Status, duration, size


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    """A stream that says it is a terminal, and counts its writes."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_lines_where_a_log_is_kept() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream=stream, clock=clock)
    assert console.mode == "lines"
    for event in story():
        clock.now += 0.1
        console.handle(event)
    console.say("report: runs/kite/report.html")
    console.close()
    *lines, last = stream.getvalue().splitlines()
    assert last == "report: runs/kite/report.html"
    names = [re.findall(r"event=(\w+)", line)[0] for line in lines]
    assert names == ["started", "validated", "sampled", "step", "step", "saved", "warned", "finished"]
    assert all(re.match(r"time=\d\d:\d\d:\d\d event=", line) for line in lines)
    assert "step=4/4" in lines[4]
    assert "held_out=0.2 lr=0.0001 steps_per_s=2" in lines[4]
    assert 'message="one [31m caption is = long"' in lines[6]
    assert 'size="3.2 MB"' in lines[5]
    assert "\x1b" not in stream.getvalue()


def test_lines_are_five_seconds_apart() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console("lines", stream=stream, clock=clock)
    console.handle(Started(run="r", steps=1000, batch=1, pictures=1))
    for step in range(1, 201):
        clock.now += 0.1
        console.handle(stepped(step))
    assert stream.getvalue().count("event=step ") == 4
    for done in range(1, 101):
        console.progress("caching pictures", done, 100)
    assert stream.getvalue().count('event=progress what="caching pictures"') == 1
    assert "done=100/100" in stream.getvalue()


def test_live_block_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Tty()
    console = Console(stream=stream, clock=Clock())
    assert console.mode == "live"
    console.progress("caching pictures", 3, 5)
    for event in story():
        console.handle(event)
    console.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for said in ("caching pictures", "3/5", "LoRA of tiny on cpu", "4/4", "100 %", "held-out 0.2 ± 0.01"):
        assert said in shown, said
    assert "saved checkpoint-4" in shown
    assert "samples samples/step-0" in shown
    assert "Done in 2 min 05 s. Use pytorch_lora_weights.safetensors." in shown
    assert "\x1b[31m caption" not in stream.getvalue()  # what a caption says does not steer the terminal
    assert stream.getvalue().rstrip().endswith("Use pytorch_lora_weights.safetensors.\x1b[0m")
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_frames_are_rate_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Tty(), Clock()
    console = Console("live", stream=stream, clock=clock)
    console.handle(Started(run="r", steps=100_000, batch=1, pictures=1))
    clock.now = 1.0
    console.handle(stepped(1))
    before = len(stream.getvalue())
    for step in range(2, 2002):
        console.handle(stepped(step))
    assert len(stream.getvalue()) == before
    clock.now = 1.3
    console.handle(stepped(2002))
    assert len(stream.getvalue()) > before
    console.close()


def test_no_color_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Tty()
    console = Console(stream=stream)
    for event in story():
        console.handle(event)
    console.close()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", stream.getvalue())
    monkeypatch.setenv("TERM", "dumb")
    assert Console(stream=Tty()).mode == "lines"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Tty, "encoding", "cp1252")
    assert Console(stream=Tty()).mode == "lines"


def test_silence_a_closed_pipe_and_a_narrow_encoding() -> None:
    stream = io.StringIO()
    quiet = Console("none", stream=stream)
    for event in story():
        quiet.handle(event)
    quiet.progress("x", 1, 1)
    quiet.close()
    assert stream.getvalue() == ""
    raw = io.BytesIO()
    ascii_stream = io.TextIOWrapper(raw, encoding="ascii")
    Console("lines", stream=ascii_stream).handle(Warned(message="苹果"))
    assert b"\\u82f9\\u679c" in raw.getvalue()
    reading, writing = os.pipe()
    os.close(reading)
    broken = os.fdopen(writing, "w")
    console = Console("lines", stream=broken)
    for event in story():
        console.handle(event)  # must not raise
    assert console.mode == "none"
    with pytest.raises(BrokenPipeError):
        broken.close()


def test_a_pause_says_how_to_go_on() -> None:
    stream = Tty()
    console = Console("live", stream=stream)
    console.handle(Warned(message="early"))
    console.handle(started(1))
    assert "resumed from step 1" in stream.getvalue()
    console.handle(Paused(step=2, reason="SIGTERM"))
    console.say("see you")
    assert stream.getvalue().endswith(" see you\n")
    assert "Paused at step 2: SIGTERM. Start the same command again to go on." in stream.getvalue()


def test_status_and_words() -> None:
    status = Status()
    for event in story()[:5]:
        status.take(event)
    assert (status.step, status.steps, status.held_out, status.samples) == (2, 4, 0.2, "samples/step-0")
    assert status.pace == pytest.approx(2.0)
    assert status.left == pytest.approx(1.0)
    assert 0.2 < status.loss < 0.4
    average = Average()
    assert math.isnan(average.value)
    average.add(math.nan)
    average.add(3.0)
    assert average.value == pytest.approx(3.0)
    assert [duration(s) for s in (8, 0.254, 125, 3_700, 200_000, math.nan)] == [
        "8 s",
        "0.25 s",
        "2 min 05 s",
        "1 h 01 min",
        "2 d 7 h",
        "?",
    ]
    assert [size(n) for n in (12, 3_200_000, 999, 10**13)] == ["12 B", "3.2 MB", "999 B", "10.0 TB"]
