"""Data sets of the Hub, against a stub of it on this machine; no other host is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_parts import TOKEN, Shelf, shelved
from runs import gesso, recipe
from sources_parts import COLOURS, colour, parquet, png, rgb, rows, tar

from gesso.data.sources import folders, orphans, read
from gesso.errors import DataError, NetworkError, RecipeError
from gesso.recipe import load
from gesso.schema import DataTable

COUNT = 8


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    from huggingface_hub import constants

    with shelved() as made:
        # The library reads its environment once, when it is imported.
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield made


def dogs(**keys: object) -> DataTable:
    return DataTable.model_validate({"path": "hub:me/dogs", **keys})


def seen(**keys: object) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    return [(record.captions, colour(record.place)) for record in read(dogs(**keys))]


EXPECTED = [((f"number {n}",), rgb(COLOURS[n % 8])) for n in range(COUNT)]


def tables(folder: Path, *names: str) -> dict[str, bytes]:
    """The eight pictures in two Parquet files; others under other names."""
    files = {
        "data/train-00000-of-00002.parquet": parquet(folder / "0.parquet", rows(COUNT)[:5]).read_bytes(),
        "data/train-00001-of-00002.parquet": parquet(folder / "1.parquet", rows(COUNT)[5:]).read_bytes(),
    }
    return files | {name: parquet(folder / "other.parquet", rows(2)).read_bytes() for name in names}


def loose(prefix: str) -> dict[str, bytes]:
    """The eight pictures as files with a list."""
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"number {n}"}) for n in range(COUNT)]
    files = {f"{prefix}{n}.png": png(COLOURS[n % 8]) for n in range(COUNT)}
    return files | {f"{prefix}metadata.jsonl": "\n".join(lines).encode()}


def shards(folder: Path, prefix: str) -> dict[str, bytes]:
    files = {}
    for number, span in enumerate((range(5), range(5, COUNT))):
        members = [(f"{n}{end}", data) for n in span for end, data in
                   ((".png", png(COLOURS[n % 8])), (".txt", f"number {n}".encode()))]  # fmt: skip
        files[f"{prefix}{number:02d}.tar"] = tar(folder / "one.tar", members).read_bytes()
    return files


def card(*configs: object) -> dict[str, bytes]:
    return {"README.md": f"---\nlicense: mit\nconfigs: {json.dumps(list(configs))}\n---\n# Dogs\n".encode()}


@pytest.fixture(
    params=["parquet", "parquet by its card", "converted", "folder", "folder with splits", "card of a folder", "tar"]
)
def filled(request: pytest.FixtureRequest, hub: Shelf, tmp_path: Path) -> Shelf:
    """The same eight pictures in every form, beside what is not to be fetched."""
    match request.param:
        case "parquet":
            hub.files = tables(tmp_path, "data/test-00000-of-00001.parquet") | {"notes.bin": b"x"}
        case "parquet by its card":
            files = [{"split": "test", "path": "b/*.parquet"}, {"split": "train", "path": ["a/0.parquet", "a/1*"]}]
            made = list(tables(tmp_path).values())
            hub.files = {"a/0.parquet": made[0], "a/1.parquet": made[1], "b/test.parquet": made[0]}
            hub.files |= card(
                {"config_name": "small", "data_files": "b/*"}, {"config_name": "default", "data_files": files}
            )
        case "converted":
            made = list(tables(tmp_path).values())
            hub.files = {"default/train/0000.parquet": made[0], "default/train/0001.parquet": made[1]}
            hub.files["default/test/0000.parquet"] = made[0]
        case "folder":
            hub.files = loose("") | {"README.md": b"# no card", "extra/notes.pdf": b"x"}
        case "folder with splits":
            hub.files = loose("train/") | {"test/9.png": png(), "test/metadata.jsonl": b"{}"}
        case "card of a folder":
            one = {"config_name": "one", "data_dir": "one"}
            hub.files = loose("one/") | {"two/9.png": png()} | card(one | {"default": True}, {"config_name": "two"})
        case "tar":
            hub.files = shards(tmp_path, "train/") | {"val/00.tar": b"x"}
    return hub


def test_every_form_is_fetched_once_and_read(filled: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert seen() == EXPECTED
    fetched = {name for name in filled.given if name != "README.md"}
    assert fetched
    assert not any(name.startswith(("test", "val", "b/", "two", "data/test", "default/test")) for name in fetched)
    assert not {"notes.bin", "extra/notes.pdf"} & fetched
    filled.given.clear()
    assert seen() == EXPECTED
    assert filled.given == []
    asked = filled.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert seen() == EXPECTED
    assert filled.asked == asked
    assert orphans(dogs()) == folders(dogs()) == []


def test_parts_and_splits_are_chosen_or_listed(hub: Shelf, tmp_path: Path) -> None:
    made = list(tables(tmp_path).values())
    hub.files = {"a/x.parquet": made[0], "b/x.parquet": made[1]}
    hub.files |= card(
        {"config_name": "one", "data_files": "a/*"}, {"config_name": "two", "data_files": {"test": "b/*"}}
    )
    with pytest.raises(DataError, match="it has several parts: one, two") as caught:
        seen()
    assert 'data.config = "one"' in caught.value.todo
    with pytest.raises(DataError, match='it has no part "three", but one, two'):
        seen(config="three")
    assert seen(config="one") == EXPECTED[:5]
    assert seen(config="two") == EXPECTED[5:]  # a part with one split alone
    hub.files |= card({"config_name": "one", "data_files": {"test": "a/*", "dev": "b/*"}})
    with pytest.raises(DataError, match='the splits test, dev, but not "train"'):
        seen()
    for path in ("../a/x.parquet", "https://elsewhere/x.parquet", "/etc/passwd"):
        hub.files |= card({"config_name": "one", "data_files": path}) | {path[-3:]: b""}
        with pytest.raises(DataError, match="its files lie elsewhere"):
            seen()
    hub.files["README.md"] = b"---\na: [\n---\n"
    with pytest.raises(DataError, match="not YAML"):
        seen()


def test_what_is_missing_is_said(hub: Shelf, tmp_path: Path) -> None:
    hub.files = {"script.py": b"", "data/a.zip": b""}
    with pytest.raises(DataError, match=r"no pictures that gesso reads in 2 files: data/a\.zip, script\.py"):
        seen()
    hub.files = tables(tmp_path)
    del hub.files["data/train-00000-of-00002.parquet"]
    with pytest.raises(DataError, match=r"1 of its 2 files are missing: data/train-00000-of-00002\.parquet"):
        seen()
    hub.files = {"data/test-0.parquet": b"", "data/valid-0.parquet": b""}
    with pytest.raises(DataError, match='the splits test, valid, but not "train"'):
        seen()


def test_columns_are_chosen_or_listed(hub: Shelf, tmp_path: Path) -> None:
    image = rows(1)[0]["image"]
    content = [{"picture": image, "sketch": image, "story": "s", "words": "w"}]
    hub.files = {"train.parquet": parquet(tmp_path / "a.parquet", content).read_bytes()}
    with pytest.raises(DataError, match="several columns could hold the picture: picture, sketch"):
        seen()
    with pytest.raises(DataError, match='no column "text" or "caption"; there are picture, sketch, story, words'):
        seen(image_column="sketch")
    assert seen(image_column="sketch", caption_column="words") == [(("w",), rgb("red"))]


def test_what_the_hub_refuses_is_one_sentence(hub: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = tables(tmp_path)
    with pytest.raises(RecipeError, match="names no data set of the Hub"):
        read(DataTable(path="hub:a/b/c"))
    with pytest.raises(NetworkError, match="no such data set on the Hub"):
        read(DataTable(path="hub:me/cats"))
    with pytest.raises(NetworkError, match="no such revision"):
        seen(revision="v9")
    hub.private = True
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(NetworkError, match="no such data set on the Hub, or it is private"):
        seen()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert seen() == EXPECTED
    hub.refuse = 403
    with pytest.raises(NetworkError) as caught:
        seen(revision="other")
    assert caught.value.exit == 6


def test_a_hub_that_is_not_there(hub: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(NetworkError, match="cannot be reached, and this data set is not") as caught:
            seen()
        assert caught.value.exit == 6


def test_a_run_reads_what_the_environment_names(hub: Shelf, tmp_path: Path, linear: Path) -> None:
    hub.files = tables(tmp_path)
    file = recipe(tmp_path, linear, data=[{"path": "hub:me/dogs"}])  # type: ignore[arg-type]
    given = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    done = gesso("train", file, "--dry-run", env=given)
    assert done.returncode == 0, done.stderr
    assert "captions  8 from Parquet with pictures" in done.stdout
    offline = gesso("train", file, "--dry-run", env={**given, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0, offline.stderr
    done = gesso("train", file, "--dry-run", env={**given, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "new")})
    assert done.returncode == 6
    assert done.stderr.count("\n") == 2, done.stderr


def test_a_name_alone_is_not_looked_up(hub: Shelf) -> None:
    with pytest.raises(DataError, match="there is no such folder") as caught:
        read(DataTable(path="me/dogs"))
    assert 'data.path = "hub:me/dogs"' in caught.value.todo
    assert hub.asked == 0


def test_keys_of_the_hub_are_refused_elsewhere() -> None:
    for name in ("revision", "config"):
        with pytest.raises(RecipeError, match=rf"data\.0\.{name} is for data sets of the Hub"):
            load(None, ["--data.path", "photos", f"--data.{name}", "x"])
        assert load(None, ["--data.path", "hub:me/dogs", f"--data.{name}", "x"]).recipe.data[0].path == "hub:me/dogs"
