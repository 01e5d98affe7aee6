"""Runs on the reference engine, whole, from the command line down: exactness, stopping, resuming, refusing."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import events, gesso, hashes, pictures, recipe, started

from gesso.data.batches import Batches
from gesso.errors import Exit, NumbersError, RecipeError, StorageError
from gesso.loop import Every, split
from gesso.recipe import load
from gesso.run import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures")
    return tmp_path


def run(path: Path, *flags: str) -> int:
    return train(load(path, flags))


def test_a_run_leaves_what_it_promises(folder: Path, linear: Path) -> None:
    before = hashes(folder / "pictures", "*")
    path = recipe(
        folder,
        linear,
        sample={"prompts": ["a", "b"], "every": 6, "seeds": [0, 5]},
        validate={"holdout": 0.4, "every": 6, "timesteps": 3},
    )
    assert run(path) == Exit.DONE
    out = folder / "out"
    for name in (
        "recipe.toml",
        "effective.json",
        "environment.json",
        "data.lock.json",
        "report.html",
        "README.md",
        "run.log",
    ):
        assert (out / name).stat().st_size > 0, name
    assert (out / "pytorch_lora_weights.safetensors").is_file()
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    steps = [event["step"] for event in events(out, "stepped")]
    assert steps == list(range(1, 13))
    assert [event["step"] for event in events(out, "sampled")] == [0, 6, 12]
    assert [event["step"] for event in events(out, "validated")] == [0, 6, 12]
    assert [event["step"] for event in events(out, "saved")] == [4, 8, 12]
    assert events(out)[-1]["event"] == "finished"
    assert (out / "samples/step-6/p01-s5.png").is_file()
    held = events(out, "validated")
    assert held[-1]["loss"] < held[0]["loss"]
    assert len(held[0]["by_timestep"]) == 3
    assert held[0]["pictures"] == 2
    assert hashes(folder / "pictures", "*") == before, "the user's pictures were touched"


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_micro_batches_are_the_same_run(folder: Path, linear: Path, adapter: str) -> None:
    path = recipe(folder, linear, adapter={"kind": adapter})
    losses = []
    for size in ("4", "2", "1"):
        out = folder / f"micro-{size}"
        run(path, "--train.micro_batch", size, "--out", str(out))
        losses.append([event["loss"] for event in events(out, "stepped")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("ema", ["0", "0.9"])
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_run_stopped_anywhere_ends_in_the_same_bytes(
    folder: Path, linear: Path, adapter: str, ema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roads, one end: straight, and stopped at steps 3 and 5 and 10 (once before, once after a checkpoint)."""
    path = recipe(folder, linear, adapter={"kind": adapter})
    straight, stopped = folder / "straight", folder / "stopped"
    run(path, "--optim.ema", ema, "--out", str(straight))
    plain = Batches.step
    for stop in (3, 5, 10):

        def interrupt(self: Batches, step: int, stop: int = stop) -> object:
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return plain(self, step)

        monkeypatch.setattr(Batches, "step", interrupt)
        assert run(path, "--optim.ema", ema, "--out", str(stopped)) == Exit.STOPPED
        assert events(stopped)[-1]["event"] == "paused"
    monkeypatch.setattr(Batches, "step", plain)
    assert run(path, "--optim.ema", ema, "--out", str(stopped)) == Exit.DONE
    assert hashes(stopped, "*.safetensors") == hashes(straight, "*.safetensors")
    last = {event["step"]: event["loss"] for event in events(stopped, "stepped")}
    assert last == {event["step"]: event["loss"] for event in events(straight, "stepped")}
    assert hashes(stopped / "checkpoint-12") == hashes(straight / "checkpoint-12")


def test_killed_at_random_and_started_again(folder: Path, linear: Path) -> None:
    """SIGKILL, five times, at moments nobody chose; the end is the same to the byte."""
    path = recipe(folder, linear, train={"steps": 3000, "batch": 4}, save={"every": 40, "keep": 2})
    assert gesso("train", path, "--out", folder / "straight").returncode == 0
    rng = random.Random(5)
    for _ in range(5):
        process = started("train", path)
        time.sleep(2.0 + rng.random() * 1.5)
        process.kill()
        process.communicate()
    last = gesso("train", path)
    assert last.returncode == 0, last.stderr
    out = folder / "out"
    assert len(events(out, "started")) >= 2
    assert hashes(out, "*.safetensors") == hashes(folder / "straight", "*.safetensors")
    assert [p.name for p in out.iterdir() if ".tmp" in p.name] == []


def test_sigterm_saves_and_says_so(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear, train={"steps": 1000000, "batch": 4}, save={"every": 0}, track={"console": "lines"})
    process = started("train", path)
    out = folder / "out"
    until(lambda: (out / "events.jsonl").is_file() and len(events(out, "stepped")) > 3)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.STOPPED
    assert "start it again to go on" in stdout
    assert events(out)[-1]["event"] == "paused"
    assert events(out)[-1]["reason"] == "SIGTERM"
    assert len(list(out.glob("checkpoint-*"))) == 1


def test_a_second_run_in_the_same_folder_is_refused(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear, train={"steps": 1000000, "batch": 4})
    process = started("train", path)
    try:
        until(lambda: (folder / "out/events.jsonl").is_file())
        second = gesso("train", path)
        assert second.returncode == Exit.LOCKED
        assert str(process.pid) in second.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_finished_run_is_not_run_again_but_can_be_extended(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear)
    run(path)
    before = hashes(folder / "out")
    run(path)
    assert hashes(folder / "out") == before
    assert len(events(folder / "out", "stepped")) == 12
    run(path, "--train.steps", "16")
    assert [e["step"] for e in events(folder / "out", "stepped")][-4:] == [13, 14, 15, 16]


def test_a_run_goes_on_from_a_checkpoint_that_is_named(folder: Path, linear: Path) -> None:
    """Back to step 4 and on: the same end, the later checkpoints left aside, and a new run from there as well."""
    path, out = recipe(folder, linear), folder / "out"
    run(path)
    straight = hashes(out, "*.safetensors")
    assert train(load(path), checkpoint=out / "checkpoint-4") == Exit.DONE
    assert hashes(out, "*.safetensors") == straight
    assert [event["step"] for event in events(out, "started")] == [0, 4]
    assert {p.name for p in out.glob("checkpoint-*")} == {
        *("checkpoint-4", "checkpoint-8", "checkpoint-12"),
        *("checkpoint-8-left-1", "checkpoint-12-left-1"),
    }
    said = [event["message"] for event in events(out, "warned")]
    assert any("checkpoint-12 is of the course that is left" in each for each in said), said

    other = folder / "other"
    assert train(load(path, ["--out", str(other)]), checkpoint=out / "checkpoint-8") == Exit.DONE
    assert hashes(other, "*.safetensors") == straight
    assert [event["step"] for event in events(other, "stepped")] == [9, 10, 11, 12]

    with pytest.raises(RecipeError, match="another run's checkpoint"):
        train(load(path, ["--out", str(other)]), checkpoint=out / "checkpoint-8")
    with pytest.raises(RecipeError, match="seed"):
        train(load(path, ["--seed", "4", "--out", str(folder / "third")]), checkpoint=out / "checkpoint-8")
    with pytest.raises(StorageError, match="no checkpoint of gesso"):
        train(load(path, ["--out", str(folder / "fourth")]), dry_run=True, checkpoint=folder / "pictures")
    assert not (folder / "fourth").exists()


def test_a_run_that_differs_is_refused_with_both_values(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear)
    run(path)
    with pytest.raises(RecipeError, match=r"seed.*3.*4"):
        run(path, "--seed", "4")
    pictures(folder / "pictures", 6)
    with pytest.raises(RecipeError, match="pictures or captions"):
        run(path, "--train.steps", "20")


def test_a_damaged_checkpoint_is_passed_over(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear)
    run(path)
    newest = folder / "out/checkpoint-12/optimizer.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    straight = hashes(folder / "out", "*.safetensors")
    run(path)
    warned = [event["message"] for event in events(folder / "out", "warned")]
    assert any("checkpoint-12" in message for message in warned)
    assert [event["step"] for event in events(folder / "out", "started")] == [0, 8]
    assert hashes(folder / "out", "*.safetensors") == straight


def test_numbers_that_are_not_finite_end_the_run(folder: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gesso.engines.reference.engine import Engine

    path = recipe(folder, linear)
    plain = Engine.encode_text
    calls = iter(range(100))
    monkeypatch.setattr(
        Engine, "encode_text", lambda self, captions: {k: v * (float("nan")) for k, v in plain(self, captions).items()}
    )
    with pytest.raises(NumbersError, match="not finite"):
        run(path)
    assert next(calls) == 0


def test_dry_run_writes_nothing(folder: Path, linear: Path) -> None:
    path = recipe(folder, linear)
    done = gesso("train", path, "--dry-run")
    assert done.returncode == 0
    assert "each picture is seen 9.6 times" in done.stdout
    assert not (folder / "out").exists()


def test_bad_data_is_said_before_anything_is_loaded(folder: Path, linear: Path) -> None:
    (folder / "pictures/2.png").write_bytes(b"this is no picture")
    path = recipe(folder, linear)
    done = gesso("train", path)
    assert done.returncode == Exit.DATA
    assert "2.png" in done.stderr
    assert "Traceback" not in done.stderr
    (folder / "pictures/1.txt").write_bytes(b"caf\xe9")
    done = gesso("train", path)
    assert done.returncode == Exit.DATA
    assert "1.txt" in done.stderr
    assert gesso("train", path, "--data.path", folder / "nowhere").returncode == Exit.DATA


def test_class_pictures_are_drawn_once_and_counted(folder: Path, linear: Path) -> None:
    prior = {"prompt": "a thing", "pictures": 6, "weight": 0.5, "sampling_steps": 2}
    path = recipe(folder, linear, prior=prior, train={"resolution": 32})
    run(path)
    drawn = hashes(folder / "out/class", "**/*.png")
    assert len(drawn) == 6
    lost = sorted((folder / "out/class").glob("**/*.png"))[2]
    lost.unlink()
    run(path, "--train.steps", "14")
    assert hashes(folder / "out/class", "**/*.png") == drawn
    lock = json.loads((folder / "out/data.lock.json").read_text())
    assert [picture["group"] for picture in lock["pictures"]].count("class") == 6


def test_every_tells_when() -> None:
    assert [step for step in range(11) if Every(steps=4).due(step, 10)] == [0, 4, 8, 10]
    assert [step for step in range(11) if Every(steps=0).due(step, 10)] == [0, 10]
    assert [step for step in range(11) if Every(steps=5, at_start=False).due(step, 10)] == [5, 10]
    assert not any(Every(steps=1, active=False).due(step, 10) for step in range(11))


def test_split_covers_the_batch(linear: Path) -> None:
    from test_engine_contract import create, rows

    batch, c = rows(create("reference", linear, adapter=None))
    parts = split(batch, c, 3)
    assert [len(part) for part, _ in parts] == [3, 1]
    assert [int(i) for part, _ in parts for i in part.ids] == [0, 1, 2, 3]


def until(there: object, seconds: float = 60) -> None:
    """Wait until `there()` holds."""
    end = time.monotonic() + seconds
    while not there():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
