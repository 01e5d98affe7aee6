"""Checkpoints: what a save leaves, what is read back, and what is never touched."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import save, value_of

from gesso import __version__
from gesso.checkpoint import Checkpoints, load, verify
from gesso.errors import StorageError
from gesso.storage import fsync_tree


def test_a_save_publishes_prunes_and_leaves_nothing_else(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        folder = save(tmp_path, step, step / 10, keep=2)
        assert folder == tmp_path / f"checkpoint-{step}"
        assert (tmp_path / "latest").read_text() == f"checkpoint-{step}\n"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-20", "checkpoint-30", "latest"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["state.json", "unet/config.json", "weights.safetensors"]
    assert manifest["files"]["weights.safetensors"]["size"] == (folder / "weights.safetensors").stat().st_size
    found, skipped = Checkpoints(tmp_path, 2).newest()
    assert found is not None
    assert not skipped
    assert found.state == {"gesso": __version__, "step": 30, "recipe": {"seed": 7}}
    assert value_of(found) == 3.0


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", 5, 1.5), save(tmp_path / "b", 5, 1.5)
    for name in ("manifest.json", "state.json", "weights.safetensors", "unet/config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_everything_is_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    """After a power loss only what was flushed is there: files, their folder, the rename, the parent folder."""
    save(tmp_path, 10, 1.0)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not show a handle's path")
    events: list[tuple[str, str]] = []

    def noting(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            events.append((name, os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])))
            real(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, noting(name, getattr(os, name)))
        final = save(tmp_path, 20, 2.0)
    published = events.index(("rename", str(final)))
    before, after = events[:published], events[published + 1 :]
    folder = next(
        path for kind, path in before if kind == "fsync" and Path(path).name.startswith(".checkpoint-20.tmp-")
    )
    manifest = before.index(("replace", f"{folder}/manifest.json"))
    for name in ("state.json", "weights.safetensors", "unet/config.json", "unet"):
        assert before.index(("fsync", f"{folder}/{name}")) < manifest
    assert before[-1] == ("fsync", folder)
    assert after[0] == ("fsync", str(tmp_path))
    pointer, pruned = after.index(("replace", str(tmp_path / "latest"))), [k for k, _ in after].index("rename")
    assert 0 < pointer < pruned


def test_flipped_bits_and_cut_files_fall_back_and_are_named(tmp_path: Path) -> None:
    save(tmp_path, 10, 1.0, keep=3)
    newest = save(tmp_path, 20, 2.0, keep=3)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    pick = random.Random(0)
    for trial in range(100):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        if trial % 3:
            at = pick.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
        else:
            path.write_bytes(whole[: pick.randrange(len(whole))])
        found, skipped = Checkpoints(tmp_path, 3).newest()
        assert found is not None
        if path.name == "manifest.json" and found.step == 20:  # the flip changed only the version that wrote it
            assert value_of(found) == 2.0
        else:
            assert (found.step, value_of(found), len(skipped)) == (10, 1.0, 1)
            assert "checkpoint-20" in skipped[0]
            assert path.name == "manifest.json" or path.relative_to(newest).as_posix() in skipped[0]
        path.write_bytes(whole)
    assert verify(newest) == []
    (newest / "weights.safetensors").unlink()
    assert verify(newest) == ["weights.safetensors is missing"]
    with pytest.raises(StorageError, match=r"weights\.safetensors is missing"):
        load(newest)


def test_going_on_after_a_fall_back_never_removes_the_good_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, 1.0, keep=2)
    (tmp_path / "checkpoint-20" / "weights.safetensors").write_bytes(b"")
    save(tmp_path, 15, 1.5, keep=1)  # from 10 again, with another cadence
    found, _ = Checkpoints(tmp_path, 1).newest()
    assert found is not None
    assert found.step == 15
    assert (tmp_path / "checkpoint-20").is_dir()
    save(tmp_path, 20, 2.0, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-20", "latest"]
    assert verify(tmp_path / "checkpoint-20") == []


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, 1.0, keep=2)
    (tmp_path / "checkpoint-20" / "weights.safetensors").unlink()
    save(tmp_path, 30, 3.0, keep=2)
    assert verify(tmp_path / "checkpoint-10") == []
    save(tmp_path, 40, 4.0, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-30", "checkpoint-40", "latest"]


def test_foreign_folders_are_neither_read_nor_removed(tmp_path: Path) -> None:
    names = ["checkpoint-final", "checkpoint-12-backup", "checkpoint-007", "checkpoint--1", "checkpoint-5", "notes"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "checkpoint-99").write_text("a file")
    shutil.copytree(save(tmp_path, 1, 1.0), tmp_path / "checkpoint-500-backup")
    for step in (10, 20, 30):
        save(tmp_path, step, 1.0, keep=1)
    for name in names:
        assert (tmp_path / name / "mine").read_text() == "mine"
    assert verify(tmp_path / "checkpoint-500-backup") == []
    found, skipped = Checkpoints(tmp_path, 1).newest()
    assert found is not None
    assert (found.step, skipped) == (30, [])


def test_a_stranger_in_a_checkpoints_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "mine").write_text("mine")
    found, skipped = Checkpoints(tmp_path, 1).newest()
    assert found is None
    assert "manifest.json is missing" in skipped[0]
    assert verify(save(tmp_path, 10, 1.0)) == []
    assert (tmp_path / "checkpoint-10-found-1" / "mine").read_text() == "mine"


def test_a_copied_checkpoint_does_not_pass_for_another_step(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 10, 1.0), tmp_path / "checkpoint-50")
    found, skipped = Checkpoints(tmp_path, 1).newest()
    assert found is not None
    assert found.step == 10
    assert skipped == ["checkpoint-50 (step 50) was skipped: manifest.json is that of step 10"]


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    folder = save(tmp_path, 10, 1.0)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../latest"] = {"size": 0, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert verify(folder) == ["../latest lies outside the checkpoint"]


def test_numbers_that_are_not_finite_are_not_taken_back(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 1).save(1, {"weights.safetensors": {"a": np.array([1.0, np.nan])}}, {})
    with pytest.raises(StorageError, match=r"weights\.safetensors: tensor \"a\" holds numbers that are not finite"):
        load(tmp_path / "checkpoint-1").arrays("weights.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_checkpoint_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save(tmp_path, 10, 1.0)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}
    fsync_tree(folder)
