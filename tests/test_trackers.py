"""What a run tells: the record, the terminal, TensorBoard."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gesso.errors import StorageError
from gesso.events import Event, Finished, Sample, Sampled, Saved, Started, Stepped, Validated, Warned
from gesso.formats import png
from gesso.trackers import jsonl
from gesso.trackers.jsonl import Jsonl
from gesso.trackers.tensorboard import Tensorboard

SAMPLES = [Sample(prompt="a kite", seed=0, file="samples/step-0/p00-s0.png")]


def stepped(step: int, loss: float = 0.1) -> Stepped:
    return Stepped(step=step, loss=loss, lr=1e-4, grad_norm=1.0, seconds=0.5)


def started(step: int = 0) -> Started:
    return Started(run="kite", steps=4, batch=2, pictures=5, step=step, resumed=step > 0, what="LoRA of tiny on cpu")


def story() -> list[Event]:
    return [
        started(),
        Validated(loss=0.2, error=0.01, pictures=3, by_timestep={100: 0.3}),
        Sampled(samples=SAMPLES),
        *(stepped(step, 0.4 / step) for step in (1, 2, 3, 4)),
        Saved(step=4, folder="checkpoint-4", bytes=3_200_000, seconds=0.2),
        Warned(step=4, message="one\x1b[31m caption is = long"),
        Finished(step=4, seconds=125.0, files=["pytorch_lora_weights.safetensors"]),
    ]


def record(path: Path, *events: Event) -> None:
    tracker = Jsonl(path)
    for event in events:
        tracker.handle(event)
    tracker.close()


def test_one_valid_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run/events.jsonl"
    record(path, *story(), stepped(5, math.nan), stepped(6, float(np.float32(math.inf))))
    lines = path.read_text(encoding="utf-8").splitlines()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    said = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [event["event"] for event in said[:4]] == ["started", "validated", "sampled", "stepped"]
    assert said[-2]["loss"] is None
    assert said[-1]["loss"] is None
    assert said[1]["by_timestep"] == {"100": 0.3}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event["time"]) for event in said)


def test_any_text_is_recorded(tmp_path: Path) -> None:
    texts = ["苹果\n🍎", 'a "quote" \\', "\udc80 is what is left of a file name", "\x00\x1b"]
    record(tmp_path / "e.jsonl", *(Warned(message=text) for text in texts))
    assert [event["message"] for event in jsonl.read(tmp_path / "e.jsonl")] == texts


def test_each_event_is_on_disk_at_once(tmp_path: Path) -> None:
    tracker = Jsonl(tmp_path / "e.jsonl")
    for step in range(3):
        tracker.handle(stepped(step))
        assert len(jsonl.read(tmp_path / "e.jsonl")) == step + 1
    tracker.close()


def test_cut_at_any_byte_it_heals_and_keeps_what_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    record(path, started(), Validated(loss=0.2, error=0.01, pictures=3, by_timestep={100: 0.3}), Warned(message="苹果"))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        before = jsonl.read(path)
        record(path, stepped(1), stepped(2))
        assert path.read_bytes().startswith(whole[:length])
        events = jsonl.read(path)
        assert [event["event"] for event in events[len(before) :]] == ["stepped", "stepped"]
        assert events[: len(before)] == before
        complete = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")
        assert len(before) == complete


def test_steps_repeated_after_a_resume_count_once(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    record(path, started(), stepped(1, 1.0), stepped(2, 2.0), stepped(3, 3.0), Sampled(step=3, samples=SAMPLES))
    record(path, started(1), stepped(2, 20.0))
    events = jsonl.read(path)
    steps, losses = jsonl.series(events, "stepped", "loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2], [1.0, 20.0])  # step 3 was disowned and is not yet repeated
    record(path, stepped(3, math.nan))
    steps, losses = jsonl.series(jsonl.read(path), "stepped", "loss")
    assert steps.tolist() == [1, 2, 3]
    assert math.isnan(losses[2])
    assert [event["event"] for event in jsonl.current(events)].count("sampled") == 0
    assert len(events) == 7


def test_no_record_yet_and_none_possible(tmp_path: Path) -> None:
    assert jsonl.read(tmp_path / "none.jsonl") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Jsonl(tmp_path / "file" / "e.jsonl")
    with pytest.raises(StorageError, match="cannot be read"):
        jsonl.read(tmp_path)


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys, itertools\nfrom pathlib import Path\nfrom gesso.trackers.jsonl import Jsonl\n"
        "from gesso.events import Warned\nt = Jsonl(Path(sys.argv[1]))\n"
        "for i in itertools.count():\n    t.handle(Warned(step=i, message='x' * 3000))\n"
        "    i == 50 and print('go', flush=True)"
    )
    path = tmp_path / "e.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    record(path, stepped(1))
    events = jsonl.read(path)
    assert events[-1]["event"] == "stepped"
    assert [event["step"] for event in events[:-1]] == list(range(len(events) - 1))
    assert len(events) > 50


def accumulated(folder: Path):  # type: ignore[no-untyped-def]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pictures = [np.full((8, 12, 3), shade, np.uint8) for shade in (10, 200)]
    for seed, picture in enumerate(pictures):
        png.write(tmp_path / f"samples/step-0/p00-s{seed}.png", picture, {"prompt": "a kite"})
    told = [Sample(prompt="a kite", seed=seed, file=f"samples/step-0/p00-s{seed}.png") for seed in (0, 1)]
    told.append(Sample(prompt="lost", seed=0, file="samples/step-0/p01-s0.png"))
    tracker = Tensorboard(tmp_path / "logs", tmp_path)
    for event in (*story()[:2], Sampled(samples=told), *story()[3:]):
        tracker.handle(event)
    tracker.close()
    tracker.handle(stepped(9))  # after the end, nothing
    found = accumulated(tmp_path / "logs")
    held_out = ["validate/level_0100", "validate/loss", "validate_error/loss"]
    assert sorted(found.Tags()["scalars"]) == ["train/grad_norm", "train/loss", "train/lr", *held_out]
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(0.4 / step)) for step in (1, 2, 3, 4)]
    assert found.Tags()["tensors"] == ["samples/00 a kite"]
    tensor = found.Tensors("samples/00 a kite")[0].tensor_proto
    assert tensor.string_val[:2] == [b"12", b"8"]
    assert tensor.string_val[2] == (tmp_path / "samples/step-0/p00-s0.png").read_bytes()
    described = found.SummaryMetadata("samples/00 a kite")
    assert (described.plugin_data.plugin_name, described.summary_description) == ("images", "a kite (seed 0, 1)")


def test_tensorboard_drops_what_a_resume_repeats(tmp_path: Path) -> None:
    first = Tensorboard(tmp_path / "logs", tmp_path)
    for event in (started(), *(stepped(step, float(step)) for step in (1, 2, 3))):
        first.handle(event)
    first.close()
    second = Tensorboard(tmp_path / "logs", tmp_path)
    for event in (started(1), stepped(2, 20.0)):
        second.handle(event)
    second.close()
    losses = [(event.step, event.value) for event in accumulated(tmp_path / "logs").Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 20.0)]


def test_trackers_import_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom gesso.trackers.tensorboard import Tensorboard\n"
        "from gesso.trackers import console, jsonl\nfrom gesso.report import page\n"
        "assert 'tensorboard' not in sys.modules\n"
        "Tensorboard(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1])).close()\n"
        "assert not {'torch', 'tensorflow', 'diffusers', 'transformers'} & set(sys.modules)\nprint('clean')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "clean\n"
