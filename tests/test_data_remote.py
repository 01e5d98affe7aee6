"""Shards behind URLs: read in place, in parts, in the order of any other data, and secrets nowhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_parts import dataset, quiet
from remote_parts import KEY, Server, serving
from sources_parts import COLOURS, colour, parquet, png, rgb, rows, tar

from gesso.data import remote
from gesso.data.plan import Slot
from gesso.data.sources import orphans, read
from gesso.errors import DataError, NetworkError, RecipeError
from gesso.schema import DataTable

pytest.importorskip("aiohttp")
COUNT = 8


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def web() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("s3fs")
    with serving(bucket=True) as server:
        for name, value in (
            ("AWS_ENDPOINT_URL", server.address),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t-word"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


def url_table(url: str, **keys: object) -> DataTable:
    return DataTable.model_validate({"path": url, **keys})


def shard(folder: Path, name: str, numbers: range, pad: int = 0) -> bytes:
    members = []
    for n in numbers:
        members += [(f"{n:03d}.png", png(COLOURS[n % 8]) + bytes(pad)), (f"{n:03d}.txt", f"number {n}".encode())]
    return tar(folder / name, members).read_bytes()


def filled(server: Server, folder: Path, prefix: str = "") -> None:
    """Two tar shards and two Parquet files."""
    server.files[f"{prefix}/tars/shard-00.tar"] = shard(folder, "0.tar", range(5))
    server.files[f"{prefix}/tars/shard-01.tar"] = shard(folder, "1.tar", range(5, COUNT))
    server.files[f"{prefix}/tables/a.parquet"] = parquet(folder / "a.parquet", rows(COUNT)[:5]).read_bytes()
    server.files[f"{prefix}/tables/b.parquet"] = parquet(folder / "b.parquet", rows(COUNT)[5:]).read_bytes()


def same_as_ever(url: str, **keys: object) -> None:
    """The eight pictures in order, then in any order."""
    found = read(url_table(url, **keys))
    assert [record.captions for record in found] == [(f"number {n}",) for n in range(COUNT)]
    order = random.Random(1).sample(range(COUNT), COUNT)
    assert [colour(found[n].place) for n in order] == [rgb(COLOURS[n % 8]) for n in order]


@pytest.mark.parametrize(
    "path",
    ["tars/shard-{00..01}.tar", "tars/shard-0{0,1}.tar", "tables/{a,b}.parquet"],
)
def test_shards_behind_http_are_read_in_place(web: Server, tmp_path: Path, path: str) -> None:
    filled(web, tmp_path)
    same_as_ever(f"{web.address}/{path}")
    assert {method for method, _, _ in web.asked} == {"HEAD", "GET"}
    assert all(span for method, where, span in web.asked if method == "GET" and where in web.files)
    assert orphans(url_table(f"{web.address}/{path}")) == []


@pytest.mark.parametrize(
    "path",
    ["tars", "tars/", "tars/*.tar", "tars/shard-{00..01}.tar", "tables", "tables/*.parquet"],
)
def test_shards_in_a_bucket_are_read_in_place(s3: Server, tmp_path: Path, path: str) -> None:
    filled(s3, tmp_path, "/pics/deep")
    same_as_ever(f"s3://pics/deep/{path}")
    assert all(span for method, where, span in s3.asked if method == "GET" and "list-type" not in where)


def test_any_file_system_of_fsspec_serves(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/set/0.tar", shard(tmp_path, "0.tar", range(COUNT)))
    same_as_ever("memory://set/*.tar")
    shard(tmp_path, "only.tar", range(COUNT))
    same_as_ever(f"file://{tmp_path}/only.tar")


def test_a_run_on_a_url_is_a_run_on_the_file(web: Server, tmp_path: Path) -> None:
    filled(web, tmp_path)
    url = f"{web.address}/tars/shard-{{00..01}}.tar"
    for name in ("0.tar", "1.tar"):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "here" / name)
    means, locks = [], []
    for path in (url, str(tmp_path / "here")):
        data = dataset(read(url_table(path)), tmp_path / "cache" / str(len(means)))
        assert data.prepare(quiet).encoded == COUNT
        means.append(data.latents([Slot(row=row, epoch=0) for row in range(COUNT)])[0])
        locks.append(data.lock([tmp_path]))
    assert np.array_equal(*means)
    assert locks[0]["fingerprint"] == locks[1]["fingerprint"]
    assert locks[0]["pictures"][0]["file"] == f"{web.address}/tars/shard-00.tar/000.png"


def test_the_index_of_a_shard_is_kept(web: Server, tmp_path: Path) -> None:
    web.files["/0.tar"] = shard(tmp_path, "0.tar", range(COUNT), pad=300_000)
    asked = url_table(f"{web.address}/0.tar")
    first = read(asked, cache=tmp_path / "cache")
    scanned = web.sent
    web.forget()
    again = read(asked, cache=tmp_path / "cache")
    assert web.sent == 0
    assert {method for method, where, _ in web.asked if where in web.files} == {"HEAD"}
    assert list(again) == list(first)
    assert scanned > 10_000
    web.files["/0.tar"] = shard(tmp_path, "0.tar", range(COUNT - 1))
    assert len(read(asked, cache=tmp_path / "cache")) == COUNT - 1
    web.tags = False  # nothing tells of a change any more
    web.forget()
    read(asked, cache=tmp_path / "cache")
    read(asked, cache=tmp_path / "cache")
    assert sum(method == "GET" for method, _, _ in web.asked) >= 2


def test_only_what_is_wanted_is_read_and_little_is_held(web: Server, tmp_path: Path) -> None:
    """Of a shard of 24 MB one block for each header and one range for each picture."""
    members = [(f"{n}.png", png() + random.Random(n).randbytes(3_000_000)) for n in range(COUNT)]
    web.files["/0.tar"] = tar(tmp_path / "0.tar", members).read_bytes()
    found = read(url_table(f"{web.address}/0.tar", prompt="p"))
    assert web.sent < 12 * remote.BLOCK
    web.forget()
    inner = found[3].inner
    assert inner is not None
    assert inner.read(found[3].path) == members[3][1]
    assert web.sent == len(members[3][1])


def test_a_failure_that_passes_is_waited_for(web: Server, tmp_path: Path) -> None:
    filled(web, tmp_path)
    asked = url_table(f"{web.address}/tars/shard-00.tar")
    found = read(asked)
    web.fail = 2
    assert colour(found[1].place) == rgb(COLOURS[1])
    web.fail = 10
    with pytest.raises(NetworkError, match=r"shard-00\.tar: cannot be read \(.*503\), after 3 attempts") as caught:
        colour(found[1].place)
    assert caught.value.exit == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"refuse": 403}, "the host does not allow reading this"),
        ({"refuse": 404}, "there is no such file on the host"),
        ({"refuse": 410}, r"cannot be read \(ClientResponseError, status 410\)"),
        ({"ranges": False}, "does not send parts of a file"),
        ({"files": {}}, "there is no such file on the host"),
    ],
)
def test_what_a_server_refuses_is_one_sentence(
    web: Server, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    web.files["/0.tar"] = shard(tmp_path, "0.tar", range(COUNT), pad=300_000)
    vars(web).update(change)
    with pytest.raises(NetworkError, match=reason):
        read(url_table(f"{web.address}/0.tar"))


def test_a_host_that_is_not_there_and_a_bucket_without_access(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:9/0\.tar: cannot be read .*after 3 attempts"):
        read(url_table("http://127.0.0.1:9/0.tar"))
    s3.files["/pics/0.tar"] = b""
    with pytest.raises(NetworkError, match=r"there is no file \.tar or \.parquet there"):
        read(url_table("s3://pics/none/"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(NetworkError, match="does not allow reading this"):
        read(url_table("s3://pics/0.tar"))


def test_a_cut_or_changed_file_is_said(web: Server, tmp_path: Path) -> None:
    whole = shard(tmp_path, "0.tar", range(COUNT), pad=300_000)
    web.files["/0.tar"] = whole
    found = read(url_table(f"{web.address}/0.tar"))
    web.files["/0.tar"] = whole[:1_000_000]
    with pytest.raises(NetworkError, match="is shorter than"):
        dataset(found, tmp_path / "cache").prepare(quiet)
    with pytest.raises(DataError, match=r"0\.tar: not a whole tar archive"):
        read(url_table(f"{web.address}/0.tar"))
    web.files["/a.parquet"] = parquet(tmp_path / "a.parquet", rows(COUNT)).read_bytes()[:-100]
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read(url_table(f"{web.address}/a.parquet"))


def test_a_network_failure_under_a_table_is_one_of_the_network(web: Server, tmp_path: Path) -> None:
    filled(web, tmp_path)
    found = read(url_table(f"{web.address}/tables/a.parquet"))
    assert colour(found[0].place) == rgb(COLOURS[0])
    from gesso.data import arrow

    arrow._open.clear()
    web.refuse = 403
    with pytest.raises(NetworkError, match="does not allow reading this"):
        colour(found[4].place)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:word@host/0.tar",
        "https://me@host/0.tar",
        "https://host/0.tar?X-Amz-Signature=abc",
        "https://host/{000..002}.tar?sv=1&sig=abc",
        "https://host/0.tar?token=abc",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RecipeError, match="may be a secret") as caught:
        read(url_table(url))
    assert not any(word in str(caught.value) for word in ("abc", "word@", "me@"))


def test_a_signature_comes_from_the_environment_and_is_shown_nowhere(
    web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(web, tmp_path)
    asked = url_table(f"{web.address}/tars/shard-{{00..01}}.tar?$SIGNATURE")
    with pytest.raises(RecipeError, match=r"\$SIGNATURE, which is not set"):
        read(asked)
    monkeypatch.setenv("SIGNATURE", "X-Sig=s3cr3t")
    found = read(asked, cache=tmp_path / "cache")
    assert all("X-Sig=s3cr3t" in where for _, where, _ in web.asked)
    data = dataset(found, tmp_path / "latents")
    data.prepare(quiet)
    shown = [*map(repr, found), *map(str, (record.place for record in found)), json.dumps(data.lock())]
    web.fail = 100
    with pytest.raises(NetworkError) as caught:
        colour(found[0].place)
    assert not any("s3cr3t" in text for text in (*shown, str(caught.value), repr(caught.value)))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not any(b"s3cr3t" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_patterns_count_as_a_shell_does() -> None:
    assert list(remote._expanded("a-{8..10}.tar")) == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert list(remote._expanded("a-{08..10}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert list(remote._expanded("{a,b}/{0..1}")) == ["a/0", "a/1", "b/0", "b/1"]
    with pytest.raises(RecipeError, match="names no files, or too many"):
        list(remote._expanded("{5..1}"))
    with pytest.raises(RecipeError, match="names no files, or too many"):
        list(remote._expanded("{0..99999999}"))


def test_what_no_package_reads_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nosuch:// is no file system"):
        read(url_table("nosuch://x/0.tar"))
    with pytest.raises(RecipeError, match="gs:// needs a package") as caught:
        read(url_table("gs://x/0.tar"))
    assert "gesso[remote]" in caught.value.todo


def test_files_of_two_kinds_are_asked_about(s3: Server, tmp_path: Path) -> None:
    filled(s3, tmp_path, "/pics")
    with pytest.raises(DataError, match=r"several kinds of files: \.parquet, \.tar"):
        read(url_table("s3://pics"))
