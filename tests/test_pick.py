"""`gesso pick`: what is measured, what is said, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import events, gesso, pictures, recipe, started
from safetensors import safe_open
from safetensors.numpy import save_file

from gesso.data import images, many
from gesso.errors import DataError, LockedError, RecipeError, StorageError
from gesso.gathering import quiet
from gesso.pick import likeness
from gesso.pick.run import pick
from gesso.recipe import load
from gesso.report import page
from gesso.run import train
from gesso.storage import RunLock

COUNT = 5
WEIGHTS = "pytorch_lora_weights.safetensors"


def made(folder: Path, base: Path, **tables: Any) -> Path:
    """A run of 12 steps with checkpoints every 4 on three pictures, six held out; its folder."""
    pictures(folder / "pictures", 3)
    pictures(folder / "unseen", 6)
    whole: dict[str, Any] = {
        "validate": {"path": str(folder / "unseen"), "every": 4, "timesteps": 3},
        "cache": {"path": str(folder / "cache")},
    }
    assert train(load(recipe(folder, base, **(whole | tables)))) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, linear: Path) -> Path:
    return made(tmp_path_factory.mktemp("picked"), linear)


@pytest.fixture(scope="module")
def picked(run: Path) -> Path:
    """The run, picked from."""
    pick(run, drawn=COUNT, progress=quiet)
    return run


def drawn(run: Path) -> dict[Path, int]:
    """When each picture was written."""
    return {file: file.stat().st_mtime_ns for file in (run / "pick").rglob("*.png")}


def measured(run: Path) -> dict[int, dict[str, list[float]]]:
    found = json.loads((run / "pick.json").read_text(encoding="utf-8"))["measured"]
    return {each.pop("step"): each for each in found}


def test_all_checkpoints_and_the_base_are_measured_alike(picked: Path) -> None:
    found = measured(picked)
    assert list(found) == [0, 4, 8, 12]
    assert {name: {len(each[name]) for each in found.values()} for name in found[0]} == {
        "held_out": {6},
        "distance": {COUNT},
        "copies": {COUNT},
        "drift": {8},
    }
    # Adapters begin as nothing: the base has not moved from itself, and later steps move further and further.
    drifts = [float(np.mean(each["drift"])) for each in found.values()]
    assert drifts[0] == 0.0
    assert drifts[1] > 1e-8
    assert drifts == sorted(drifts)


def test_the_loss_is_that_of_the_run_where_one_draw_of_noise_is_enough(tmp_path: Path, linear: Path) -> None:
    """Two roads: the run's own measurement, and the checkpoint read back and measured."""
    pictures(tmp_path / "unseen", 40)
    out = made(tmp_path / "run", linear, validate={"path": str(tmp_path / "unseen"), "every": 4, "timesteps": 8})
    pick(out, drawn=2, progress=quiet)
    known = {event["step"]: event["by_picture"] for event in events(out, "validated")}
    for step, each in measured(out).items():
        assert each["held_out"] == pytest.approx(known[step], rel=1e-6)


def test_the_page_shows_the_choice_and_picking_again_draws_nothing_twice(picked: Path) -> None:
    text = (picked / "report.html").read_text(encoding="utf-8")
    said = json.loads((picked / "pick.json").read_text(encoding="utf-8"))
    assert "Which checkpoint" in text
    assert said["sentence"] in text
    assert text.count(" of 5</td>") == 4
    before = drawn(picked)
    assert len(before) == 8 + 4 * COUNT
    pick(picked, drawn=COUNT, progress=quiet)
    assert drawn(picked) == before
    assert json.loads((picked / "pick.json").read_text(encoding="utf-8")) == said


def test_a_run_shows_what_its_own_losses_tell_before_anything_is_picked(tmp_path: Path, linear: Path) -> None:
    text = (made(tmp_path, linear) / "report.html").read_text(encoding="utf-8")
    assert "Which checkpoint" in text
    assert "gesso pick" in text
    assert "Likeness" not in text


def test_without_held_out_pictures_the_page_says_that_losses_cannot_choose(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear, validate={"path": "", "every": 0})
    assert "no held-out losses to choose by" in (out / "report.html").read_text(encoding="utf-8")
    found = pick(out, drawn=2, progress=quiet)
    assert any("No pictures were held out" in each for each in found.doubts)
    assert all(row.held_out is None for row in found.rows)


def test_damaged_checkpoints_are_left_out_and_the_page_says_so(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)
    weights = out / "checkpoint-8" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    found = pick(out, drawn=2, progress=quiet)
    assert {row.step for row in found.rows} == {0, 4, 12}
    assert any("checkpoint-8 is damaged" in each for each in found.doubts)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "Likeness" in text
    assert "checkpoint-8 is damaged" in text


def rewritten(checkpoint: Path, value: float) -> None:
    """A checkpoint whose weights are all `value`, as a run that has gone wrong would have written it."""
    file, manifest = checkpoint / WEIGHTS, checkpoint / "manifest.json"
    with safe_open(file, "numpy") as opened:
        arrays = {name: np.full_like(opened.get_tensor(name), value) for name in opened.keys()}  # noqa: SIM118
        save_file(arrays, file, metadata=opened.metadata())
    said = json.loads(manifest.read_text(encoding="utf-8"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    said["files"][WEIGHTS] = {"size": file.stat().st_size, "sha256": digest}
    manifest.write_text(json.dumps(said), encoding="utf-8")


def test_weights_that_are_not_finite_or_too_large_are_never_kept(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)
    rewritten(out / "checkpoint-8", math.nan)
    rewritten(out / "checkpoint-12", 3e38)
    ended = gesso("pick", out, "--count", 2, "--json")
    assert ended.returncode == 0, ended.stderr

    def no_json(name: str) -> None:
        raise ValueError(name)

    found = json.loads(ended.stdout, parse_constant=no_json)
    json.loads((out / "pick.json").read_text(encoding="utf-8"), parse_constant=no_json)
    assert found["step"] == 4
    assert any("checkpoint-8 is left out" in each and "not finite" in each for each in found["doubts"])
    assert {row["step"]: row["against"] for row in found["rows"]}[12] == "its numbers are not finite"
    assert "Likeness" in (out / "report.html").read_text(encoding="utf-8")
    assert " nan" not in gesso("pick", out, "--count", 2).stdout


def test_what_was_picked_goes_with_its_checkpoints(tmp_path: Path, linear: Path) -> None:
    """A checkpoint of the same step that another course has made is another checkpoint."""
    out = made(tmp_path, linear)
    pick(out, drawn=2, progress=quiet)
    page.write(out)
    assert "Likeness" in (out / "report.html").read_text(encoding="utf-8")
    rewritten(out / "checkpoint-8", 0.5)
    page.write(out)
    assert "Likeness" not in (out / "report.html").read_text(encoding="utf-8")
    before = drawn(out)
    pick(out, drawn=2, progress=quiet)
    assert {file.parent.name for file, at in drawn(out).items() if before[file] != at} == {"step-8"}


def test_a_run_may_be_moved(tmp_path: Path, linear: Path) -> None:
    moved = tmp_path / "other" / "place"
    moved.parent.mkdir()
    shutil.move(made(tmp_path, linear), moved)
    pick(moved, drawn=2, progress=quiet)
    assert not (tmp_path / "out").exists()
    assert {path.name for path in moved.iterdir()} >= {"pick", "pick.json", "report.html"}


def test_stopped_in_the_middle_it_draws_the_rest_when_started_again(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)

    def stopping(what: str, done: int, total: int) -> None:
        if what == "drawing step-8" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pick(out, drawn=3, progress=stopping)
    before = drawn(out)
    assert len(before) == 8 + 3 + 3 + 1
    assert not (out / "pick.json").exists()
    assert not list(out.rglob(".*.tmp-*"))
    pick(out, drawn=3, progress=quiet)
    after = drawn(out)
    assert len(after) == 8 + 4 * 3
    assert {file: after[file] for file in before} == before


def test_a_signal_ends_it_between_two_pictures_and_says_that_it_can_go_on(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)
    running = started("pick", out, "--count", "4000")
    while not drawn(out) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said, told = running.communicate(timeout=60)
    assert (running.returncode, said) == (75, ""), told
    assert told.splitlines()[-1] == "gesso: stopped (SIGTERM)"
    assert not list(out.rglob(".*.tmp-*"))
    assert pick(out, drawn=2, progress=quiet).step == 12


def test_fewer_pictures_than_before_are_all_that_is_shown(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)
    pick(out, drawn=6, progress=quiet)
    found = pick(out, drawn=2, progress=quiet)
    assert {row.drawn for row in found.rows} == {2}
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count(", picture 2&quot;") + text.count(', picture 2"') > 0
    assert "picture 3" not in text


def test_of_one_training_picture_it_says_that_copies_cannot_be_told(tmp_path: Path, linear: Path) -> None:
    pictures(tmp_path / "one", 1)
    data = [{"path": str(tmp_path / "one")}]
    out = made(tmp_path, linear, data=data, validate={"path": "", "every": 0})
    found = pick(out, drawn=2, progress=quiet)
    assert {row.copies for row in found.rows} == {None}
    assert any("copies cannot be told" in each for each in found.doubts)
    assert " of 2" not in (out / "report.html").read_text(encoding="utf-8")


def test_held_out_pictures_must_not_have_been_learned_from(tmp_path: Path, linear: Path) -> None:
    """Of fewer pictures, other ones are held out than before."""
    pictures(tmp_path / "pictures", 12)
    out = made(tmp_path, linear, validate={"path": "", "holdout": 0.25, "every": 4})
    held = {row["file"] for row in json.loads((out / "data.lock.json").read_text(encoding="utf-8"))["pictures"]}
    (tmp_path / "pictures" / sorted(held)[0]).unlink()
    with pytest.raises(DataError, match="not the pictures"):
        pick(out, drawn=2, progress=quiet)


def test_held_out_pictures_in_a_folder_that_were_learned_from_are_told_of(picked: Path) -> None:
    """The six unseen pictures of these runs are the three that are learned from, and three more."""
    said = json.loads((picked / "pick.json").read_text(encoding="utf-8"))
    assert any(each.startswith("3 of 6 held-out pictures were learned from") for each in said["doubts"])


def test_packed_pictures_are_known_by_their_indexes(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "MANY", 2)
    for name, count in (("a", 8), ("b", 7)):
        pictures(tmp_path / f"loose-{name}", count)
        ended = gesso("pack", "--to", "webdataset", tmp_path / f"loose-{name}", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    shutil.copytree(tmp_path / "a", tmp_path / "packed")
    out = made(tmp_path, linear, data=[{"path": str(tmp_path / "packed")}])
    assert "indexes" in json.loads((out / "data.lock.json").read_text(encoding="utf-8"))
    pick(out, drawn=2, progress=quiet)
    shutil.rmtree(tmp_path / "cache")
    pick(out, drawn=2, progress=quiet)  # the index, made again, is the same
    shutil.rmtree(tmp_path / "packed")
    shutil.copytree(tmp_path / "b", tmp_path / "packed")
    with pytest.raises(DataError, match="not the pictures"):
        pick(out, drawn=2, progress=quiet)


def test_a_run_that_measured_at_some_checkpoints_says_so(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear, save={"every": 2, "keep": 9})
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "3 of 6 checkpoints are of steps at which nothing was measured" in text
    assert "Likeness" not in text


def test_events_of_before_have_no_losses_by_picture(tmp_path: Path, linear: Path) -> None:
    out = made(tmp_path, linear)
    lines = [{name: value for name, value in event.items() if name != "by_picture"} for event in events(out)]
    (out / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page.write(out)
    assert "no held-out losses to choose by" in (out / "report.html").read_text(encoding="utf-8")
    assert pick(out, drawn=2, progress=quiet).step is not None


def test_what_it_refuses(tmp_path: Path, linear: Path) -> None:
    with pytest.raises(RecipeError, match="no run of gesso"):
        pick(tmp_path, drawn=2, progress=quiet)
    out = made(tmp_path, linear)
    with RunLock(out), pytest.raises(LockedError):
        pick(out, drawn=2, progress=quiet)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.move(checkpoint, tmp_path / checkpoint.name)
    with pytest.raises(RecipeError, match="no checkpoint yet"):
        pick(out, drawn=2, progress=quiet)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.move(checkpoint, out / checkpoint.name)
    shutil.move(tmp_path / "pictures", tmp_path / "elsewhere")
    with pytest.raises(DataError):
        pick(out, drawn=2, progress=quiet)
    shutil.copytree(tmp_path / "unseen", tmp_path / "pictures")
    with pytest.raises(DataError, match="not the pictures"):
        pick(out, drawn=2, progress=quiet)
    with pytest.raises(RecipeError, match="no run of gesso") as told:
        pick(out / "checkpoint-4", drawn=2, progress=quiet)
    assert f"gesso pick {out}" in str(told.value)
    for broken in ("{", "[]", "{}"):
        (out / "data.lock.json").write_text(broken)
        with pytest.raises(DataError, match="cannot be read"):
            pick(out, drawn=2, progress=quiet)
    (out / "data.lock.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        pick(out, drawn=2, progress=quiet)


def test_another_base_is_refused(tmp_path: Path, linear: Path) -> None:
    """The base's answers are what everything is held against."""
    base = tmp_path / "base"
    shutil.copytree(linear, base)
    out = made(tmp_path, base)
    (weights,) = (base / "unet").glob("*.safetensors")
    with safe_open(weights, "numpy") as opened:
        arrays = {name: opened.get_tensor(name) * 2 for name in opened.keys()}  # noqa: SIM118
    save_file(arrays, weights)
    with pytest.raises(RecipeError, match="not the model that this run has trained"):
        pick(out, drawn=2, progress=quiet)
    for array in arrays.values():
        array[...] = math.nan
    save_file(arrays, weights)
    with pytest.raises((RecipeError, StorageError)):
        pick(out, drawn=2, progress=quiet)


def test_a_checkpoint_that_was_being_replaced_is_put_back_and_one_set_aside_is_not_asked(
    tmp_path: Path, linear: Path
) -> None:
    out = made(tmp_path, linear)
    (out / "checkpoint-8").rename(out / ".checkpoint-8.old-0123abcd")
    (out / "checkpoint-12").rename(out / "checkpoint-12-left-1")
    found = pick(out, drawn=2, progress=quiet)
    assert {row.step for row in found.rows} == {0, 4, 8}
    assert (out / "checkpoint-8").is_dir()
    assert any(each.startswith("checkpoint-8 was being replaced") for each in found.doubts)
    assert "Likeness" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "tables",
    [
        {"adapter": {"kind": "none"}, "optim": {"lr": 0.01, "ema": 0.9}},
        {"prior": {"prompt": "a thing", "pictures": 2}},
        {"train": {"crop": "random", "flip": True, "caption_dropout": 0.3}, "cache": {"latents": False, "text": False}},
        {"train": {"buckets": True, "bucket_step": 8}},
    ],
    ids=["all weights, averaged", "class pictures", "nothing kept", "buckets"],
)
def test_runs_of_other_kinds(tmp_path: Path, linear: Path, tables: dict[str, Any]) -> None:
    out = made(tmp_path, linear, **tables)
    found = pick(out, drawn=2, progress=quiet)
    assert {row.step for row in found.rows} == {0, 4, 8, 12}
    drifts = {step: float(np.mean(each["drift"])) for step, each in measured(out).items()}
    assert drifts[0] == 0.0
    assert min(drifts[4], drifts[8], drifts[12]) > 0.0


def test_the_command(picked: Path, tmp_path: Path) -> None:
    ended = gesso("pick", picked, "--count", COUNT, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rows"][-1]["step"] == 0
    ended = gesso("pick", picked, "--count", COUNT)
    assert ended.stdout.splitlines()[0].split()[:2] == ["checkpoint", "held-out"]
    assert ended.stdout.splitlines()[-1] == f"page: {picked / 'report.html'}"
    for wrong in (("pick", tmp_path), ("pick", picked, "--count", "1")):
        ended = gesso(*wrong)
        assert ended.returncode == 2
        assert ended.stderr.count("\n") <= 2


def test_a_training_picture_is_itself_and_its_mirror_image(tmp_path: Path) -> None:
    shown = [images.load(file) for file in sorted(pictures(tmp_path, 4).glob("*.png"))]
    known = np.stack([likeness.thumbnail(each) for each in shown])
    near = likeness.near(known, known[:0], known[:0])
    assert near > 0
    assert (likeness.apart(known, known).min(1) < 1e-9).all()
    mirrored = np.stack([likeness.thumbnail(each[:, ::-1].copy()) for each in shown])
    assert (likeness.apart(mirrored, known).min(1) < near).all()
    features = np.stack([likeness.features(each) for each in shown])
    assert np.allclose(likeness.distances(features, features), 0.0)
    assert np.allclose(np.square(features).sum(1), 2.0)
    # The same picture twice is one picture: it makes nothing else a copy.
    assert likeness.near(np.concatenate([known, known]), known[:0], known[:0]) == pytest.approx(near)


def test_what_the_base_draws_is_no_copy_and_so_shows_what_is_near() -> None:
    known = np.stack([np.zeros((16, 16, 3)), np.ones((16, 16, 3))])
    none = known[:0]
    assert likeness.near(known, none, none) == pytest.approx(likeness.CLOSE)
    assert likeness.near(known, none, known[:1] + 0.5) == pytest.approx(likeness.CLOSE * 0.5)
    assert likeness.near(known, none, known[:1] + 0.2) == pytest.approx(likeness.CLOSE), "a copy by the real ones"
