"""`gesso pack`: the same records in few files, the same bytes however often it was stopped, nothing else touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from hub_parts import shelved
from PIL import Image
from push_parts import TOKEN, Answers, Hub, taking
from runs import gesso, hashes, pictures, recipe
from sources_parts import parquet, rows, tar

from gesso import packing
from gesso.cli import main
from gesso.data import images, index
from gesso.data.sources import read
from gesso.errors import DataError, LockedError, RecipeError
from gesso.packing import LEDGER, Request, pack
from gesso.packing.forms import FORMS
from gesso.schema import DataTable

COUNT = 9
SMALL = 20_000
"""Bytes of a shard, of which nine pictures then make several."""


def quiet(*_: object) -> None:
    pass


def packed(source: Path, out: Path, form: str, **keys: Any) -> packing.Done:
    return pack(Request(**{"source": str(source), "out": out, "form": form, "shard_bytes": SMALL} | keys), quiet)


def content(path: Path, **keys: Any) -> list[tuple[bytes, tuple[str, ...], tuple[float, ...]]]:
    """What a run would learn from: the bytes of each picture, its captions and their weights, in their order."""
    records = read(DataTable.model_validate({"path": str(path), **keys}))
    return [(images.contents(record.place), record.captions, record.shares) for record in records]


def files(folder: Path, *, ledger: bool = False) -> dict[str, bytes]:
    """Every file below; the ledger, which knows the times of the source's files, where asked for."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if ledger or name != LEDGER}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of two formats, in two folders, one with a name that no tar sample could have."""
    folder = pictures(tmp_path / "photos", COUNT)
    (folder / "below").mkdir()
    (folder / "3.png").rename(folder / "below" / "3.odd näme.png")
    (folder / "3.txt").rename(folder / "below" / "3.odd näme.txt")
    with Image.open(folder / "4.png") as image:
        image.save(folder / "4.jpg", quality=90)
    (folder / "4.png").unlink()
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_back_is_what_was_packed(form: str, photos: Path, tmp_path: Path) -> None:
    before, out = files(photos), tmp_path / "out"
    done = packed(photos, out, form)
    assert content(out) == content(photos)
    assert (done.pictures, done.kept, done.skipped) == (COUNT, 0, ())
    assert done.shards > 2
    assert files(photos) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    # From a pack to every other form, and back: nothing is lost on the way.
    for other in FORMS:
        packed(out, tmp_path / other, other, shard_bytes=2 * SMALL)
        assert content(tmp_path / other) == content(photos)


def test_an_index_lies_beside_each_tar(photos: Path, tmp_path: Path) -> None:
    packed(photos, tmp_path / "out", "webdataset")
    shards = sorted((tmp_path / "out").glob("*.tar"))
    found = [row for shard in shards for row in index.read(Path(index.beside(str(shard))),
                                                           {"shard_size": shard.stat().st_size}) or ()]  # fmt: skip
    assert len(found) == COUNT
    for row, record in zip(found, read(DataTable(path=str(photos))), strict=True):
        data = images.contents(record.place)
        decoded = images.decode(data, record.place)
        assert row.captions == record.captions
        assert row.member.size == len(data)
        assert row.member.sha256 == images.fingerprint(record.place)
        assert (row.member.width, row.member.height) == (decoded.width, decoded.height)
    for path in (tmp_path / "out").glob("*.safetensors"):
        path.unlink()
    assert content(tmp_path / "out") == content(photos)


@pytest.mark.parametrize("form", FORMS)
def test_the_library_datasets_reads_it(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if form == "webdataset":  # its reader of tar files wants all pictures in one format
        photos = pictures(tmp_path / "alike", COUNT)
    packed(photos, tmp_path / "out", form)
    if form == "save_to_disk":
        found = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    else:
        found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    records = read(DataTable(path=str(photos)))
    assert len(found) == COUNT
    image, text = ("image", "text") if form != "webdataset" else ("png", "txt")
    for row, record in zip(found, records, strict=True):
        np.testing.assert_array_equal(np.asarray(row[image].convert("RGB")), images.load(record.place))
        assert row[text] == record.captions[0]


def test_a_run_on_it_ends_in_the_same_weights(photos: Path, linear: Path, tmp_path: Path) -> None:
    def trained(path: Path, name: str) -> tuple[dict[str, str], list[float]]:
        (tmp_path / name).mkdir()
        # Of the reference engine's weights only its own, not an adapter's, depend on captions.
        made = recipe(tmp_path / name, linear, data=[{"path": str(path)}], adapter={"kind": "none"})  # type: ignore[arg-type]
        done = gesso("train", made)
        assert done.returncode == 0, done.stderr
        events = map(json.loads, (tmp_path / name / "out" / "events.jsonl").read_text().splitlines())
        return hashes(tmp_path / name / "out", "unet/*.safetensors"), [e["loss"] for e in events if "loss" in e]

    expected = trained(photos, "run")
    assert len(expected[1]) >= 12
    for form in FORMS:
        packed(photos, tmp_path / form, form)
        assert trained(tmp_path / form, f"run on {form}") == expected, form


class Kill(BaseException):
    """As good as a process that ends between two pictures."""


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_pack_goes_on_and_ends_in_the_same_bytes(form: str, photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    shards = packed(photos, whole, form).shards
    request = Request(source=str(photos), out=out, form=form, shard_bytes=SMALL)

    def die(what: str, done: int, total: int) -> None:
        if (what, done) == ("pictures", COUNT - 2):
            raise Kill

    with pytest.raises(Kill):
        pack(request, die)
    assert not out.exists()
    part = tmp_path / ".out.packing"
    before = {name: data for name, data in files(part).items() if name in files(whole)}
    with (part / LEDGER).open("ab") as file:  # and in the middle of a line
        file.write(b'{"file": "tra')
    done = packed(photos, out, form)
    assert 1 < done.kept < done.shards == shards
    assert files(out) == files(whole)
    assert files(out, ledger=True) == files(whole, ledger=True)
    kept = [json.loads(line)["files"] for line in (out / LEDGER).read_text().splitlines()[1 : 1 + done.kept]]
    assert all(before[name] == files(out)[name] for each in kept for name in each)
    assert not part.exists()
    again = packed(photos, out, form)
    assert (again.kept, again.pictures) == (shards, COUNT)


def test_what_no_longer_verifies_is_packed_again(photos: Path, tmp_path: Path) -> None:
    request = Request(source=str(photos), out=tmp_path / "out", form="webdataset", shard_bytes=SMALL)

    def killed_before(source: Path, done: int) -> Path:
        def die(what: str, at: int, total: int) -> None:
            if (what, at) == ("pictures", done):
                raise Kill

        with pytest.raises(Kill):
            pack(request, die)
        return tmp_path / ".out.packing"

    second = killed_before(photos, COUNT) / "train-00001.tar"
    data = bytearray(second.read_bytes())
    data[600] ^= 1
    second.write_bytes(data)
    assert pack(request, quiet).kept == 1
    assert content(tmp_path / "out") == content(photos)
    (tmp_path / "out").rename(tmp_path / "first")
    killed_before(photos, COUNT)
    (photos / "0.txt").write_text("another caption")
    assert pack(request, quiet).kept == 0
    assert content(tmp_path / "out") == content(photos)
    (tmp_path / "out").rename(tmp_path / "second")
    killed_before(photos, COUNT)
    other = Request(source=str(photos), out=tmp_path / "out", form="webdataset", shard_bytes=2 * SMALL)
    assert pack(other, quiet).kept == 0


def test_a_real_kill_loses_no_finished_file(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", 60)
    command = [sys.executable, "-m", "gesso", "pack", str(photos), str(tmp_path / "out"), "--to", "parquet",
               "--shard-size", "20kB"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = tmp_path / ".out.packing" / LEDGER
    while process.poll() is None and (not ledger.exists() or ledger.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["kept"] >= 3
    assert answer["pictures"] == 60
    packed(photos, tmp_path / "whole", "parquet")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_broken_pictures_are_all_named_and_nothing_appears(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"1.png": b"<html>", "6.png": (photos / "6.png").read_bytes()[:300]}
    whole = {name: (photos / name).read_bytes() for name in broken}
    for name, data in broken.items():
        (photos / name).write_bytes(data)
    command = ["pack", str(photos), str(tmp_path / "out"), "--to", "parquet", "--shard-size", "5kB", "--json"]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert all(str(photos / name) in said for name in broken)
    assert "2 of 9 pictures" in said
    assert not (tmp_path / "out").exists()
    assert main(["pack", str(photos), str(tmp_path / "some"), "--to", "parquet", "--skip-broken", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["pictures"] == COUNT - 2
    assert [line.partition(": ")[0] for line in answer["skipped"]] == list(broken)
    kept = [record for record in read(DataTable(path=str(photos))) if Path(record.path).name not in broken]
    assert [caption for _, caption, _ in content(tmp_path / "some")] == [record.captions for record in kept]
    for name, data in whole.items():
        (photos / name).write_bytes(data)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1  # of before the first broken one
    assert content(tmp_path / "out") == content(photos)


def test_the_last_pictures_may_be_broken_too(photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.glob("*.png"))
    for name in names[-1:]:
        (photos / name).write_bytes(b"")
    (photos / "below" / "3.odd näme.png").write_bytes(b"")
    done = packed(photos, tmp_path / "out", "webdataset", shard_bytes=1, skip_broken=True)
    assert (done.pictures, done.shards, len(done.skipped)) == (COUNT - 2, COUNT - 2, 2)
    again = packed(photos, tmp_path / "out", "webdataset", shard_bytes=1, skip_broken=True)
    assert (again.kept, again.skipped) == (COUNT - 2, done.skipped)


def test_lists_of_captions_keep_their_order_and_weights(photos: Path, tmp_path: Path) -> None:
    listed = [{"file_name": f"{n}.png", "text": [f"one {n}", f"two, {n}"]} for n in (0, 1)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    for form in FORMS:
        packed(photos, tmp_path / form, form)
        assert content(tmp_path / form) == content(photos)
        assert any(len(captions) == 2 for _, captions, _ in content(photos))
    listed[0]["text"] = [["one", 3], "two"]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    packed(photos, tmp_path / "weighted", "webdataset")
    assert content(tmp_path / "weighted") == content(photos)
    for path in (tmp_path / "weighted").glob("*.safetensors"):
        path.unlink()
    assert content(tmp_path / "weighted") == content(photos)
    with pytest.raises(RecipeError, match="weights"):
        packed(photos, tmp_path / "none", "parquet")


def test_masks_go_with_their_pictures(photos: Path, tmp_path: Path) -> None:
    Image.new("L", (48, 48), 128).save(photos / "0-masklabel.png")
    mask = (photos / "0-masklabel.png").read_bytes()
    for form in FORMS:
        done = packed(photos, tmp_path / form, form)
        assert any("masks" in note for note in done.notes)
        assert done.pictures == COUNT
        assert any(mask in data for data in files(tmp_path / form).values())
        assert content(tmp_path / form) == content(photos)


def test_larger_pictures_are_made_smaller_where_asked(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(photos / "small.png")
    (photos / "small.txt").write_text("small")
    packed(photos, tmp_path / "out", "webdataset", resize=32)
    mine, theirs = content(tmp_path / "out"), content(photos)
    assert [caption for _, caption, _ in mine] == [caption for _, caption, _ in theirs]
    for record, before in zip(
        read(DataTable(path=str(tmp_path / "out"))), read(DataTable(path=str(photos))), strict=True
    ):
        now, then = images.load(record.place), images.load(before.place)
        if min(then.shape[:2]) <= 32:
            assert images.contents(record.place) == images.contents(before.place)
            continue
        assert min(now.shape[:2]) == 32
        assert now.shape[1] == round(then.shape[1] * 32 / 48)
        wanted = np.asarray(Image.fromarray(then).resize(now.shape[1::-1], Image.Resampling.LANCZOS))
        lossless = Path(str(before.path)).suffix == ".png"
        assert np.abs(now.astype(int) - wanted).mean() <= (0 if lossless else 4)


def test_a_recipe_says_what_is_packed(photos: Path, linear: Path, tmp_path: Path) -> None:
    kohya = pictures(tmp_path / "kohya" / "3_sks dog", 2, captions=False)
    made = recipe(
        tmp_path,
        linear,
        data=[{"path": str(photos), "repeats": 2}, {"path": str(kohya.parent), "repeats": 2}],  # type: ignore[arg-type]
    )
    done = packed(made, tmp_path / "out", "parquet")
    assert done.notes[0] == "not in the pack, keep in the recipe: data.repeats"
    assert "once (4 times less)" in done.notes[1]
    whole = content(tmp_path / "out")
    assert whole[:COUNT] == content(photos)
    assert [caption for _, caption, _ in whole[COUNT:]] == [("sks dog",)] * 2
    made = recipe(tmp_path, linear, data=[{"path": str(photos)}, {"path": str(kohya), "trigger": "sks"}])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="differ in trigger"):
        packed(made, tmp_path / "differ", "parquet")
    with pytest.raises(RecipeError, match="--prompt is for a folder"):
        packed(made, tmp_path / "flag", "parquet", table={"prompt": "x"})
    other = tmp_path / "other.toml"
    subset = {"image_dir": str(photos), "num_repeats": 3}
    other.write_text(tomlkit.dumps({"datasets": [{"subsets": [subset]}]}))
    assert packed(other, tmp_path / "toml", "parquet").pictures == COUNT


def test_other_sources_and_their_flags(tmp_path: Path) -> None:
    table = [{**row, "words": f"other {n}"} for n, row in enumerate(rows(6))]
    source = parquet(tmp_path / "in.parquet", table)
    packed(source, tmp_path / "a", "webdataset", table={"caption_column": "words"})
    assert [caption for _, caption, _ in content(tmp_path / "a")] == [(f"other {n}",) for n in range(6)]
    shard = tar(tmp_path / "in.tar", [(f"{n}.png", row["image"]["bytes"]) for n, row in enumerate(table)])
    packed(shard, tmp_path / "b", "save_to_disk", table={"prompt": "all alike"})
    assert {caption for _, caption, _ in content(tmp_path / "b")} == {("all alike",)}
    assert packed(source, tmp_path / "c", "parquet", table={"max_samples": 4}).pictures == 4


def test_a_list_may_lie_elsewhere(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files of S1's scripts: ./image_captions.json names ./images by absolute paths, of another machine."""
    for path in photos.rglob("*.txt"):
        path.unlink()
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*") if path.is_file())
    keys = {f"/home/someone/images/{name}": f"what {name} shows" for name in names}
    (tmp_path / "image_captions.json").write_text(json.dumps(keys, indent=4))
    command = ["pack", str(photos), str(tmp_path / "datasets" / "mine"), "--to", "save_to_disk"]
    assert main(command) == 3
    assert "no caption" in capsys.readouterr().err
    assert main([*command, "--captions", str(tmp_path / "image_captions.json")]) == 0
    assert [caption for _, caption, _ in content(tmp_path / "datasets" / "mine")] == [(each,) for each in keys.values()]
    assert main([*command, "--captions", str(tmp_path / "words.json")]) == 2
    assert main([*command, "--captions", str(tmp_path / "img_txt.csv")]) == 3


def test_what_cannot_be_is_said_before_anything_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    for flags, code, said in (
        (("--to", "zip"), 2, '--to is "zip"'),
        (("--to", "parquet", "--shard-size", "much"), 2, "--shard-size"),
        (("--to", "parquet", "--shard-size", "0MB"), 2, "--shard-size"),
        (("--to", "parquet", "--resize", "-1"), 2, "--resize"),
        (("--to", "save_to_disk", "--push", "me/set"), 2, "--to parquet"),
        (("--to", "parquet", "--public"), 2, "--public"),
        (("--to", "parquet", "--format", "zip"), 2, "--format is 'zip'"),
        (("--to", "parquet", "--max-samples", "-1"), 2, "--max-samples is -1"),
    ):
        found = main(["pack", str(photos), str(tmp_path / "out"), *flags])
        assert (found, said in capsys.readouterr().err) == (code, True), flags
    for out in (photos / "packed", photos):
        with pytest.raises(RecipeError, match="never writes to"):
            packed(photos, out, "parquet")
    (tmp_path / "there").mkdir()
    with pytest.raises(RecipeError, match="overwrites nothing"):
        packed(photos, tmp_path / "there", "parquet")
    with pytest.raises(DataError):
        packed(tmp_path / "nowhere", tmp_path / "out", "parquet")
    with packing._held(tmp_path / "out"), pytest.raises(LockedError):
        packed(photos, tmp_path / "out", "parquet")
    assert main(["pack", str(photos), str(tmp_path / "out"), "--to", "parquet", "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == f"{COUNT} pictures"
    assert files(tmp_path) == before


class OfDatasets(Answers):
    """The same stub, asked for a data set."""

    def do_POST(self) -> None:
        self.path = self.path.replace("/api/datasets/me/set/", "/api/models/me/dog/")
        super().do_POST()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    # The library reads its environment once, when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with taking() as made:
        made.RequestHandlerClass = OfDatasets
        for name, value in {"HF_ENDPOINT": made.address, "HF_TOKEN": TOKEN, "NO_PROXY": "*"}.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_pack_is_pushed_as_a_private_data_set(
    form: str,
    hub: Hub,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["pack", str(photos), str(tmp_path / "out"), "--to", form, "--push", "me/set"]
    monkeypatch.setenv("HF_TOKEN", "")
    assert main(command) == 6
    assert "no token" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuse = 403
    assert main(command) == 6
    assert "may not write to me/set" in capsys.readouterr().err
    hub.refuse = 0
    assert main(command) == 0  # what was packed is not packed again
    said = capsys.readouterr().out
    assert "1 of them from before" in said
    assert "on the Hub:" in said
    assert hub.private
    assert hub.made["type"] == "dataset"
    assert hub.files == files(tmp_path / "out")
    assert f"train-*.{'tar' if form == 'webdataset' else form}" in hub.files["README.md"].decode()
    with shelved() as shelf:
        shelf.files = dict(hub.files)
        monkeypatch.setenv("HF_ENDPOINT", shelf.address)
        assert content(Path("hub:me/dogs")) == content(photos)
        packed(Path("hub:me/dogs"), tmp_path / "again", "save_to_disk")
    assert content(tmp_path / "again") == content(photos)
