"""A first signal is noted and said, a second one ends the work at once; nothing outside the main thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from runs import pictures, recipe

from gesso.errors import Exit
from gesso.listeners import Listeners
from gesso.schema import Track
from gesso.stop import NAMES, Stop

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")

TWICE = """
import os, signal, sys, time
from pathlib import Path
from gesso.stop import Stop
from gesso.storage import RunLock

out, number = Path(sys.argv[1]), getattr(signal, sys.argv[2])
try:
    with RunLock(out), Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.reason and (out / ".lock.json").exists()
        os.kill(os.getpid(), number)
        time.sleep(30)
except KeyboardInterrupt:
    sys.exit(75)
"""
"""Two signals to a process that holds a run folder."""
PREPARING = """
import os, signal, sys
from gesso.cli import main
from gesso.engines.reference.engine import Engine

encode, verb, count = getattr(Engine, sys.argv[3]), sys.argv[3], 0

def watched(self, given, **keys):
    global count
    count += 1
    assert count <= 2, "the work went on"
    if count == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return encode(self, given, **keys)

setattr(Engine, verb, watched)
sys.exit(main([sys.argv[1], sys.argv[2]]))
"""
"""`gesso train RECIPE`, with one Ctrl-C while the engine does its second piece of work of a kind."""


@posix
@pytest.mark.parametrize("number", list(NAMES), ids=lambda number: number.name)
def test_the_first_is_noted_and_said_and_the_second_raises(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.reason == NAMES[number]
        assert capfd.readouterr().err == "gesso: stopping after this step; once more to stop now\n"
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert signal.getsignal(number) == before


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_second_signal_leaves_no_lock_behind(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", TWICE, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.STOPPED, done.stderr
    assert done.stderr.count("once more to stop now") == 1
    assert not (tmp_path / ".lock.json").exists()


@posix
@pytest.mark.parametrize("verb", ["encode_images", "encode_text", "sample"])
def test_ctrl_c_while_a_run_prepares_stops_within_one_picture(tmp_path: Path, linear: Path, verb: str) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, linear, prior={"prompt": "a thing", "pictures": 4, "sampling_steps": 2})
    command = [sys.executable, "-c", PREPARING, "train", str(path), verb]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == Exit.STOPPED, done.stderr
    assert "once more to stop now" in done.stderr
    assert "gesso: stopped (Ctrl-C)" in done.stderr
    assert not (tmp_path / "out" / ".lock.json").exists()


def test_outside_the_main_thread_it_does_nothing() -> None:
    before = {number: signal.getsignal(number) for number in NAMES}
    seen: list[object] = []

    def work() -> None:
        with Stop() as stop:
            stop.check()
            seen.append({number: signal.getsignal(number) for number in NAMES})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_preparations_end_where_they_tell_of_their_progress(tmp_path: Path) -> None:
    stop, track = Stop(), Track(tensorboard=False, console="none")
    with Listeners(tmp_path, track, stop) as listeners, Listeners(tmp_path, track) as alone:
        listeners.progress("pictures", 1, 2)
        stop.reason = "SIGTERM"
        alone.progress("pictures", 2, 2)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            listeners.progress("pictures", 2, 2)
