"""Whole runs from every form of data: the same pictures and captions give the same weights, also after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from remote_parts import serving
from runs import gesso, hashes, pictures, recipe
from sources_parts import parquet, saved, tar

FILES = 5


def loose(folder: Path) -> list[tuple[bytes, str]]:
    """Pictures with captions in `folder`/pictures, and what is in them."""
    found = pictures(folder / "pictures", FILES)
    return [((found / f"{n}.png").read_bytes(), (found / f"{n}.txt").read_text()) for n in range(FILES)]


def trained(folder: Path, linear: Path, data: dict[str, object], *flags: str, **tables: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    # Of the reference engine's weights only its own, not an adapter's, depend on captions.
    made = recipe(folder, linear, data=[data], adapter={"kind": "none"}, **tables)  # type: ignore[arg-type]
    done = gesso("train", made, *flags)
    assert done.returncode == 0, done.stderr + done.stdout
    return hashes(folder / "out", "unet/*.safetensors")


def test_every_form_ends_in_the_same_weights(tmp_path: Path, linear: Path) -> None:
    content = loose(tmp_path)
    table = [{"image": {"bytes": data, "path": ""}, "text": caption} for data, caption in content]
    members = [
        (f"{n}.{ending}", data if ending == "png" else caption.encode())
        for n, (data, caption) in enumerate(content)
        for ending in ("png", "txt")
    ]
    lists = tmp_path / "lists"
    lists.mkdir()
    for number, (data, _) in enumerate(content):
        (lists / f"{number}.png").write_bytes(data)
    keys = {f"/somewhere/else/{number}.png": caption for number, (_, caption) in enumerate(content)}
    (lists / "image_captions.json").write_text(json.dumps(keys))
    expected = trained(tmp_path / "loose", linear, {"path": str(tmp_path / "pictures")})
    assert expected
    for name, path in {
        "parquet": parquet(tmp_path / "a.parquet", table),
        "arrow": saved(tmp_path / "saved", table[:2], table[2:]),
        "tar": tar(tmp_path / "a.tar", members),
        "json": lists,
    }.items():
        assert trained(tmp_path / name, linear, {"path": str(path)}) == expected, name


@pytest.mark.slow
def test_a_run_on_shards_behind_a_url_ends_like_one_on_the_folder_and_keeps_no_secret(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    content = loose(tmp_path)
    expected = trained(tmp_path / "loose", linear, {"path": str(tmp_path / "pictures")})
    monkeypatch.setenv("SIGNATURE", "X-Sig=s3cr3t")
    monkeypatch.setenv("NO_PROXY", "*")
    with serving() as server:
        for number, span in enumerate((content[:2], content[2:])):
            members = [(f"{n}.png", data) for n, (data, _) in enumerate(span)]
            members += [(f"{n}.txt", caption.encode()) for n, (_, caption) in enumerate(span)]
            server.files[f"/{number}.tar"] = tar(tmp_path / "one.tar", members).read_bytes()
        data: dict[str, object] = {"path": f"{server.address}/{{0..1}}.tar?$SIGNATURE"}
        trained(tmp_path / "far", linear, data, "--train.steps", "5")
        assert trained(tmp_path / "far", linear, data) == expected
        server.refuse = 403
        done = gesso("train", tmp_path / "far" / "recipe.toml", "--train.steps", "20")
    assert done.returncode == 6
    assert done.stderr.startswith(f"gesso: {server.address}/0.tar: the host does not allow reading this")
    kept = [path for path in (tmp_path / "far").rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert kept == []
    assert "s3cr3t" not in done.stderr + done.stdout


def test_a_run_with_masks_shuffles_and_wildcards_goes_on_bit_for_bit(tmp_path: Path, linear: Path) -> None:
    folder = pictures(tmp_path / "pictures", FILES, captions=False)
    for number in range(FILES):
        width = 48 + 8 * number
        Image.fromarray((np.arange(48 * width).reshape(48, width) % 256).astype(np.uint8)).save(
            folder / f"{number}-masklabel.png"
        )
        (folder / f"{number}.txt").write_text(f"1girl, tag {number}, {{red|green|blue}}, more, and more")
    data = {"path": str(folder), "masks": True, "shuffle": True, "keep_tokens": 1, "wildcards": True, "trigger": "sks"}
    train = {"steps": 12, "batch": 4, "crop": "random", "flip": True}
    whole = trained(tmp_path / "whole", linear, data, train=train)
    assert trained(tmp_path / "half", linear, data, "--train.steps", "8", train=train) != whole
    assert trained(tmp_path / "half", linear, data, train=train) == whole
    for key, value in {
        "masks": False,
        "trigger": "",
        "shuffle": False,
        "wildcards": False,
        "unmasked_weight": 0.5,
        "max_samples": 4,
    }.items():
        changed = {**data, key: value} if key != "shuffle" else {**data, key: value, "keep_tokens": 0}
        assert trained(tmp_path / key, linear, changed, train=train) != whole, key
    text = (tmp_path / "whole" / "out" / "events.jsonl").read_text()
    assert "are shuffled or have many wildcards" in text
    other = [{**data, "trigger": "other"}]
    done = gesso("train", recipe(tmp_path / "half", linear, data=other, train=train, adapter={"kind": "none"}))
    assert done.returncode == 2
    assert "data.0.trigger" in done.stderr


def test_the_outline_names_the_reader(tmp_path: Path, linear: Path) -> None:
    folder = pictures(tmp_path / "pictures", 4)
    (folder / "metadata.csv").write_text("file_name,text\n1.png,one\n2.png,two\n")
    (folder / "3.txt").unlink()
    done = gesso("train", recipe(tmp_path, linear, data=[{"path": str(folder), "prompt": "p"}]), "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("captions")]
    assert sorted(lines) == ["1 from a text file beside", "1 from data.prompt", "2 from metadata.csv"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"keep_tokens": 1}, "data.0.keep_tokens has no effect without data.0.shuffle"),
        ({"separator": "|"}, "data.0.separator has no effect without data.0.shuffle"),
        ({"unmasked_weight": 0.5}, "data.0.unmasked_weight has no effect without data.0.masks"),
        ({"format": "zip"}, "data.0.format"),
    ],
)
def test_keys_that_could_do_nothing_are_refused(
    tmp_path: Path, linear: Path, keys: dict[str, object], said: str
) -> None:
    done = gesso("train", recipe(tmp_path, linear, data=[{"path": "photos", **keys}]), "--dry-run")
    assert done.returncode == 2
    assert said in done.stderr


def test_a_trigger_may_be_the_new_word(tmp_path: Path, linear: Path) -> None:
    folder = pictures(tmp_path / "pictures", 2)
    made = recipe(tmp_path, linear, engine="torch", data=[{"path": str(folder)}], tokens=[{"name": "<dog>"}])
    assert "no caption has <dog>" in gesso("train", made, "--dry-run").stderr
    assert "no caption has" not in gesso("train", made, "--dry-run", "--data.trigger", "<dog>").stderr
