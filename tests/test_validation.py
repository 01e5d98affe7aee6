"""What is measured, drawn and saved, and when: by steps, by epochs, from flags and files, resumed or split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import events, gesso, pictures, recipe

from gesso.errors import Exit, RecipeError
from gesso.events import Stepped
from gesso.recipe import load
from gesso.report import levels, reading
from gesso.run import train
from gesso.trackers import jsonl
from gesso.trackers.tensorboard import Tensorboard

PICTURES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures", PICTURES)
    pictures(tmp_path / "unseen", 3)
    return tmp_path


def go(path: Path, *flags: str | Path) -> int:
    return train(load(path, [str(flag) for flag in flags]))


def steps(out: Path, *names: str) -> list[list[int]]:
    """The steps of each kind of event, as they count after resumes."""
    counted = jsonl.current(jsonl.read(out / "events.jsonl"))
    return [[event["step"] for event in counted if event["event"] == name] for name in names]


def made(folder: Path, base: Path, **tables: Any) -> Path:
    """A run that measures, draws one prompt and saves."""
    whole: dict[str, Any] = {
        "sample": {"prompts": ["a"], "every": 5},
        "validate": {"path": str(folder / "unseen"), "every": 4, "timesteps": 3},
        "save": {"every": 6},
    }
    return recipe(folder, base, **{name: {**whole.get(name, {}), **table} for name, table in (whole | tables).items()})


def test_it_measures_and_draws_before_at_every_n_steps_and_at_the_end(folder: Path, linear: Path) -> None:
    assert go(made(folder, linear)) == Exit.DONE
    validated, sampled, saved, stepped = steps(folder / "out", "validated", "sampled", "saved", "stepped")
    assert validated == [0, 4, 8, 12]
    assert sampled == [0, 5, 10, 12]
    assert saved == [6, 12]
    assert stepped == list(range(1, 13))
    first, *_, last = events(folder / "out", "validated")
    assert first["pictures"] == 3
    assert last["loss"] < first["loss"]


def test_epochs_are_counted_out_in_steps(folder: Path, linear: Path) -> None:
    """6 pictures in batches of 4: an epoch is a step and a half, three epochs are five steps with a rest of two."""
    path = made(
        folder,
        linear,
        train={"epochs": 6, "batch": 4},
        sample={"prompts": ["a"], "every": 0, "every_epochs": 2},
        validate={"every": 0, "every_epochs": 3},
        save={"every": 500, "every_epochs": 1.5},
    )
    text = path.read_text().replace("steps = 12\n", "")
    path.write_text(text)
    assert go(path) == Exit.DONE
    validated, sampled, saved, stepped = steps(folder / "out", "validated", "sampled", "saved", "stepped")
    assert stepped[-1] == 9, "6 epochs of 6 pictures in batches of 4"
    assert sampled == [0, 3, 6, 9]
    assert validated == [0, 5, 9]
    assert saved == [3, 6, 9], "1.5 epochs are 2.25 steps, rounded up"


def test_a_picture_that_counts_twice_makes_the_epoch_longer(folder: Path, linear: Path) -> None:
    path = made(folder, linear, train={"epochs": 2, "batch": 4})
    path.write_text(path.read_text().replace("steps = 12\n", ""))
    assert go(path, "--data.repeats", "3", "--out", folder / "three") == Exit.DONE
    assert go(path, "--data.repeats", "1", "--out", folder / "one") == Exit.DONE
    assert steps(folder / "three", "stepped")[0][-1] == 9, "2 epochs of 18 in batches of 4"
    assert steps(folder / "one", "stepped")[0][-1] == 3


def test_held_out_pictures_are_no_part_of_the_epoch(folder: Path, linear: Path) -> None:
    path = made(folder, linear, train={"epochs": 2, "batch": 4}, validate={"holdout": 0.34})
    text = path.read_text().replace("steps = 12\n", "").replace(f'path = "{folder / "unseen"}"\n', "")
    path.write_text(text)
    assert go(path) == Exit.DONE
    assert steps(folder / "out", "stepped")[0][-1] == 2, "2 epochs of the 4 that are left"


def test_epochs_are_shown_kept_resumed_and_extended(folder: Path, linear: Path) -> None:
    path = made(folder, linear, train={"epochs": 6, "batch": 4})
    path.write_text(path.read_text().replace("steps = 12\n", ""))
    shown = gesso("train", path, "--dry-run")
    assert shown.returncode == Exit.DONE, shown.stderr
    assert "9 of 4 pictures: each picture is seen 6.0 times" in shown.stdout
    assert not (folder / "out").exists()

    assert go(path) == Exit.DONE
    out = folder / "out"
    kept = load(out).recipe
    assert kept.train.epochs == 6
    before = steps(out, "stepped")[0]
    assert go(out) == Exit.DONE, "the run folder by itself"
    assert steps(out, "stepped")[0] == before
    assert go(path, "--train.epochs", "8") == Exit.DONE
    assert steps(out, "started", "stepped")[1] == list(range(1, 13))
    assert load(out).recipe.train.epochs == 8
    straight = folder / "straight"
    assert go(path, "--train.epochs", "8", "--out", straight) == Exit.DONE
    files = "pytorch_lora_weights.safetensors"
    assert (out / files).read_bytes() == (straight / files).read_bytes()
    with pytest.raises(RecipeError, match="at step 12 already"):
        go(path, "--train.epochs", "6")


def test_a_warm_up_longer_than_the_epochs_is_refused_before_anything_is_written(folder: Path, linear: Path) -> None:
    path = made(folder, linear, train={"epochs": 2, "batch": 4}, optim={"warmup": 3})
    path.write_text(path.read_text().replace("steps = 12\n", ""))
    with pytest.raises(RecipeError, match=r"train.epochs = 2 are 3 steps"):
        go(path)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_measure_the_same(folder: Path, linear: Path, size: int) -> None:
    path = made(folder, linear)
    go(path, "--out", folder / "whole")
    go(path, "--out", folder / "split", "--train.micro_batch", str(size))
    whole, split = (events(folder / name, "validated") for name in ("whole", "split"))
    assert steps(folder / "whole", "validated", "sampled", "saved") == steps(
        folder / "split", "validated", "sampled", "saved"
    )
    for one, other in zip(whole, split, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["error"] == pytest.approx(one["error"], rel=1e-5)
        for key in ("by_timestep", "error_by_timestep"):
            assert other[key] == pytest.approx(one[key], rel=1e-5)


def test_a_resumed_run_measures_and_draws_what_the_straight_one_does(
    folder: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped on a step where something is due, and on one where nothing is: nothing twice, nothing left out."""
    path = made(folder, linear, train={"steps": 12, "batch": 4}, sample={"prompts": ["a"], "every": 4})
    go(path, "--out", folder / "straight")
    for stop in (5, 8):
        go(path, "--out", folder / "parts", "--train.steps", str(stop))
    go(path, "--out", folder / "parts")
    kinds = ("validated", "sampled", "stepped")
    straight, parts = (steps(folder / name, *kinds) for name in ("straight", "parts"))
    assert [set(a) - set(b) for a, b in zip(straight, parts, strict=True)] == [set()] * 3
    assert [set(b) - set(a) for a, b in zip(straight, parts, strict=True)] == [{5}, {5}, set()], "5 was an end"
    losses = [
        {event["step"]: (event["loss"], event["error"], event["by_timestep"]) for event in events(out, "validated")}
        for out in (folder / "straight", folder / "parts")
    ]
    assert {step: losses[1][step] for step in losses[0]} == losses[0]


def test_the_error_is_the_standard_error_over_pictures(folder: Path, linear: Path) -> None:
    """Recomputed from the engine's own answers for each picture and level."""
    from gesso.engines.reference.engine import Engine

    answers: list[tuple[tuple[int, ...], float, list[float]]] = []
    plain = Engine.evaluate

    def listen(self: Engine, batch: Any, coefficients: Any, *, ema: bool = False) -> Any:
        found = plain(self, batch, coefficients, ema=ema)
        answers.append((tuple(batch.ids), float(coefficients.c_noise[0]), [float(each) for each in found]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "evaluate", listen)
        go(made(folder, linear, validate={"every": 0, "timesteps": 4}))
    first = events(folder / "out", "validated")[0]
    asked = answers[:4]
    table = np.array([values for _, _, values in asked])  # [levels, pictures]
    assert table.shape == (4, 3)
    assert first["loss"] == pytest.approx(table.mean(), rel=1e-12)
    assert first["error"] == pytest.approx(table.mean(0).std(ddof=1) / np.sqrt(3), rel=1e-12)
    for (_, timestep, _), values in zip(asked, table, strict=True):
        assert first["by_timestep"][str(int(timestep))] == pytest.approx(values.mean(), rel=1e-12)
        assert first["error_by_timestep"][str(int(timestep))] == pytest.approx(
            values.std(ddof=1) / np.sqrt(3), rel=1e-12
        )


def test_one_held_out_picture_has_no_error(folder: Path, linear: Path) -> None:
    pictures(folder / "single", 1)
    go(made(folder, linear, validate={"path": str(folder / "single")}))
    found = events(folder / "out", "validated")
    assert {event["error"] for event in found} == {0.0}
    assert {error for event in found for error in event["error_by_timestep"].values()} == {0.0}


def test_prompts_of_a_file_are_drawn_with_those_of_the_recipe(folder: Path, linear: Path) -> None:
    """Into the run folder and into TensorBoard, each under its prompt."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder / "prompts.txt").write_bytes("\ufeffan owl \r\n\r\n  ein Kürbis\r\n".encode())
    path = made(folder, linear, sample={"prompts": ["a"], "every": 6}, track={"tensorboard": True})
    assert go(path, "--sample.prompts_file", folder / "prompts.txt") == Exit.DONE
    out = folder / "out"
    prompts = ["a", "an owl", "ein Kürbis"]
    for event in events(out, "sampled"):
        assert [sample["prompt"] for sample in event["samples"]] == prompts
        assert all((out / sample["file"]).is_file() for sample in event["samples"])
    found = EventAccumulator(str(out / "logs"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = [f"samples/{number:02d} {prompt}" for number, prompt in enumerate(prompts)]
    assert sorted(found.Tags()["tensors"]) == tags
    assert [event.step for event in found.Tensors(tags[2])] == [0, 6, 12]
    assert found.SummaryMetadata(tags[2]).summary_description == "ein Kürbis (seed 0)"
    assert load(out).recipe.sample.prompts_file == str(folder / "prompts.txt"), "the recipe is kept as it was written"


def test_tensorboard_has_every_noise_level_with_its_error(folder: Path, linear: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(made(folder, linear, track={"tensorboard": True}))
    out = folder / "out"
    found = EventAccumulator(str(out / "logs"), size_guidance={"scalars": 0}).Reload()
    tags = {tag for tag in found.Tags()["scalars"] if tag.startswith("validate")}
    names = ["loss", "level_0166", "level_0500", "level_0833"]
    assert tags == {f"{table}/{name}" for table in ("validate", "validate_error") for name in names}
    for number, event in enumerate(events(out, "validated")):
        said = {
            "validate/loss": event["loss"],
            "validate_error/loss": event["error"],
            "validate/level_0166": event["by_timestep"]["166"],
            "validate_error/level_0166": event["error_by_timestep"]["166"],
        }
        for tag, value in said.items():
            scalar = found.Scalars(tag)[number]
            assert (scalar.step, scalar.value) == (event["step"], pytest.approx(value, rel=1e-6))
    assert not any(tag.startswith("train/lr_") for tag in found.Tags()["scalars"]), "one group has one rate"


def test_tensorboard_has_the_rate_of_each_group(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tensorboard(tmp_path / "logs", tmp_path)
    for step in (1, 2):
        rates = {"unet": 1e-4 * step, "text_encoder": 0.0}
        tracker.handle(Stepped(step=step, loss=1.0, lr=1e-4 * step, grad_norm=1.0, seconds=1.0, rates=rates))
    tracker.close()
    found = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0}).Reload()
    read = {tag: [event.value for event in found.Scalars(f"train/{tag}")] for tag in ("lr", "lr_unet")}
    assert read["lr_unet"] == read["lr"] == pytest.approx([1e-4, 2e-4])
    assert [event.value for event in found.Scalars("train/lr_text_encoder")] == [0.0, 0.0]


def test_the_report_compares_the_noise_levels(folder: Path, linear: Path) -> None:
    go(made(folder, linear))
    run = reading.read(folder / "out")
    first, *_, last = events(folder / "out", "validated")
    found = levels.levels(run)
    assert [level.timestep for level in found] == [166, 500, 833]
    for level in found:
        key = str(level.timestep)
        assert (level.before, level.now) == (first["by_timestep"][key], last["by_timestep"][key])
        assert level.before_error == first["error_by_timestep"][key]
        assert level.now_error == last["error_by_timestep"][key]
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "Held-out loss by noise level" in page
    assert "Before</th>" in page
    assert "Step 12</th>" in page


def test_the_report_says_what_is_within_the_error() -> None:
    event = {"event": "validated", "error_by_timestep": {"9": 0.02, "500": 0.001}}
    told = reading.Run(
        folder=Path(),
        events=[
            {**event, "step": 0, "by_timestep": {"9": 0.5, "500": 0.2, "900": None}},
            {**event, "step": 40, "by_timestep": {"9": 0.49, "500": 0.1, "900": 0.1}},
        ],
    )
    assert [(level.timestep, level.clear) for level in levels.levels(told)] == [(9, False), (500, True)]
    text = str(levels.table(told))
    assert "−50 %" in text
    assert text.count("within the error") == 1
    assert levels.table(reading.Run(folder=Path(), events=told.events[:1])) is None
