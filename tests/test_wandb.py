"""Weights & Biases: the real library, offline, and what it has recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import events, gesso, pictures, recipe

from gesso.errors import RecipeError
from gesso.trackers.wandb import check

pytest.importorskip("wandb", reason="gesso[wandb] is not installed")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Without anybody's login."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home / "wandb")}
    return {**kept, **folders, **more}


@pytest.fixture
def run(tmp_path: Path, linear: Path) -> Path:
    pictures(tmp_path / "pictures")
    return recipe(
        tmp_path,
        linear,
        track={"wandb": "toys"},
        train={"steps": 6, "batch": 2},
        save={"every": 3},
        sample={"prompts": ["a thing: 100% new / or old?", "x" * 300], "seeds": [1, 2], "every": 3, "steps": 2},
        validate={"holdout": 0.4},
    )


def recorded(folder: Path) -> list[Any]:
    """The records of an offline run, in order, as the library's own reader gives them."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    found = []
    while data := store.scan_data():
        found.append(Record.FromString(data))
    store.close()
    return found


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def of(records: list[Any], kind: str) -> Any:
    return next(getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind)


def test_what_a_run_tells_is_recorded_and_a_resumed_run_is_the_same_one(tmp_path: Path, run: Path) -> None:
    given = environment(tmp_path, WANDB_MODE="offline")
    done = gesso("train", run, "--train.steps", "3", "--track.console", "lines", env=given)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert f"Weights & Biases: wandb sync {out}/wandb/offline-run-" in done.stdout
    (first,) = (out / "wandb").glob("offline-run-*")
    identity = (out / "wandb" / "id").read_text().strip()
    assert first.name.endswith(f"-{identity}")
    records = recorded(first)
    about = of(records, "run")
    assert (about.project, about.display_name, about.run_id) == ("toys", "out", identity)
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["train"]["steps"] == 3
    assert of(records, "exit").exit_code == 0
    assert about.host == ""
    machines = {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}
    assert not machines & {path.name for path in (first / "files").iterdir()}

    rows = history(records)
    told = {event["step"]: event for event in events(out, "stepped")}
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {step: event["loss"] for step, event in told.items()}
    assert {row["train/lr"] for row in rows if "train/lr" in row} == {0.01}
    held = {row["step"]: row["validate/loss"] for row in rows if "validate/loss" in row}
    assert held == {event["step"]: event["loss"] for event in events(out, "validated")}
    drawn = [row for row in rows if "samples/00.filenames" in row or "samples/00" in row]
    assert [row["step"] for row in drawn] == [0, 3]
    kept = {path.read_bytes() for path in (first / "files" / "media" / "images" / "samples").iterdir()}
    assert {path.read_bytes() for path in (out / "samples").rglob("*.png")} <= kept
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert ("*", "step") in {(metric.glob_name or metric.name, metric.step_metric) for metric in metrics}

    again = gesso("train", run, env=given)
    assert again.returncode == 0, again.stderr
    assert "resume" not in again.stderr
    (second,) = set((out / "wandb").glob("offline-run-*")) - {first}
    later = recorded(second)
    assert of(later, "run").run_id == identity
    assert [row["step"] for row in history(later) if "train/loss" in row] == [4, 5, 6]


@pytest.mark.slow
def test_a_run_that_ends_with_an_error_has_failed_there(tmp_path: Path, run: Path) -> None:
    os.truncate(tmp_path / "pictures" / "3.png", 100)  # the header is whole, so that this is found only when it is read
    done = gesso("train", run, env=environment(tmp_path, WANDB_MODE="offline"))
    assert done.returncode == 3, done.stderr
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert of(recorded(folder), "exit").exit_code == 1


def test_without_a_login_nothing_begins(tmp_path: Path, run: Path) -> None:
    said = "needs a login to Weights & Biases, and there is none"
    done = gesso("train", run, env=environment(tmp_path))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2  # the sentence, and what to do
    assert not (tmp_path / "out").exists()
    assert said in gesso("check", run, "--no-html", env=environment(tmp_path)).stdout


def test_a_project_is_a_name() -> None:
    with pytest.raises(RecipeError, match="is no name of a project"):
        check("me/toys")


@pytest.mark.slow
def test_a_login_in_netrc_is_one_and_a_host_that_is_away_is_said(tmp_path: Path, run: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    given = environment(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert gesso("train", run, "--dry-run", env=given).returncode == 0
    done = gesso("train", run, env=given)
    assert done.returncode == 6
    assert "Weights & Biases does not take the run" in done.stderr
    assert events(tmp_path / "out") == []


def test_the_library_is_asked_for(tmp_path: Path, run: Path) -> None:
    code = "import sys; sys.modules['wandb'] = None; from gesso.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(run)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "gesso[wandb]" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_helper_that_dies_ends_the_telling_and_not_the_run(tmp_path: Path, run: Path) -> None:
    """The library's own process, which talks to the network, is ended in mid-run."""
    code = (
        "import os, signal, sys, gesso.loop as loop\n"
        "from pathlib import Path\n"
        "real = loop.train\n"
        "def train(plan):\n"
        "    for event in real(plan):\n"
        "        if event.name == 'stepped' and event.step == 2:\n"
        "            for each in Path('/proc').glob('[0-9]*/cmdline'):\n"
        "                try: words = each.read_bytes().split(b'\\0')\n"
        "                except OSError: continue\n"
        "                if words[0].endswith(b'wandb-core') and str(os.getpid()).encode() in words:\n"
        "                    os.kill(int(each.parent.name), signal.SIGKILL)\n"
        "        yield event\n"
        "loop.train = train\n"
        "from gesso.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("processes are found in /proc")
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(run)],
        capture_output=True, text=True, check=False, timeout=120, env=environment(tmp_path, WANDB_MODE="offline"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Weights & Biases") == 1
    assert "the run goes on" in done.stderr
    assert [event["step"] for event in events(tmp_path / "out", "stepped")] == [1, 2, 3, 4, 5, 6]
