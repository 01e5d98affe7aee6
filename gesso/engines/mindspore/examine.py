"""What the MindSpore engine finds on this computer. `python -m gesso.engines.mindspore.examine` prints it as JSON.

{"findings": [{"about", "text", "state", "fix"}, …], "devices": [as devices.devices() gives them]}
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gesso.engines.mindspore.versions import NEEDS, numbers, problems

Finding = dict[str, str]
CANN = (
    ("2.7.1", "8.3.RC1"),
    ("2.10", "8.2, 8.3, 8.5, 9.0 or 9.1"),
)
"""MindSpore and the CANN that it runs on: of 2.7.1 as Ascend's deployer pairs them, of 2.10 as MindSpore itself checks.

https://gitcode.com/yangpeng197/ascend-deployer, downloader/version_match.json; mindspore/run_check/_check_version.py.
"""
SET_UP = (
    "python3.11 -m venv .venv-mindspore; .venv-mindspore/bin/pip install -r constraints-mindspore.txt; "
    ".venv-mindspore/bin/pip install --no-deps -e ."
)
PYTHON = ((3, 11), (3, 13))


def findings() -> Iterator[Finding]:
    """The Python, the libraries, what else is in the environment, and the NPU's driver."""
    if not PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        here = ".".join(map(str, sys.version_info[:2]))
        yield _finding("Python", f"{here}, but MindSpore needs 3.11 or 3.12", "problem", SET_UP)
    wrong = problems()
    for name in NEEDS:
        yield _finding(name, wrong[name], "problem", SET_UP) if name in wrong else _finding(name, version(name))
    if _newer("diffusers", (0, 40)):
        text = f"diffusers {version('diffusers')} is here too, which wants another huggingface-hub than mindone"
        yield _finding("environment", text, "note", 'for engine = "torch" use an environment of its own')
    yield from _ascend()


def devices() -> list[dict[str, Any]]:
    """What can train; nothing while the libraries do not fit."""
    if problems():
        return []
    from gesso.engines.mindspore.devices import devices as seen

    with contextlib.redirect_stdout(io.StringIO()):
        return seen()


def _newer(name: str, least: tuple[int, ...]) -> bool:
    try:
        return numbers(version(name)) >= least
    except PackageNotFoundError:
        return False


def _ascend() -> Iterator[Finding]:
    """The NPU's driver and CANN, and which CANN goes with which MindSpore."""
    pairs = "; ".join(f"MindSpore {mindspore} with CANN {cann}" for mindspore, cann in CANN)
    driver = shutil.which("npu-smi") or next(iter(sorted(Path("/dev").glob("davinci[0-9]*"))), None)
    home = os.environ.get("ASCEND_HOME_PATH", "")
    if not driver:
        yield _finding("Ascend", f"no NPU driver is here, so training runs on the CPU ({pairs})", "note")
        return
    if not home:
        fix = "install CANN, then: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
        yield _finding("CANN", f"an NPU driver is here, but ASCEND_HOME_PATH is not set ({pairs})", "problem", fix)
        return
    yield _finding("CANN", f"{_cann(Path(home))} in {home} ({pairs})")


def _cann(home: Path) -> str:
    try:
        text = (home / "compiler" / "version.info").read_text(encoding="utf-8")
    except OSError:
        return "of an unknown version"
    found = re.search(r"Version\s*=\s*(\S+)", text)
    return found[1] if found else "of an unknown version"


def _finding(about: str, text: str, state: str = "ok", fix: str = "") -> Finding:
    return {"about": about, "text": text, "state": state, "fix": fix}


if __name__ == "__main__":
    answer = {"findings": list(findings()), "devices": devices()}
    json.dump(answer, sys.stdout)
