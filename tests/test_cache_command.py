"""`gesso cache`: what it fills, training finds; what it says and refuses; damage costs work, and never a bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import events, gesso, hashes, pictures, recipe, started

from gesso.cli import main
from gesso.data.cache import Store
from gesso.errors import Exit
from gesso.fill import Share, fill
from gesso.recipe import load
from gesso.run import train

COUNT = 5


def run(path: Path, out: Path, *flags: str) -> dict[str, str]:
    """Train into `out`; the hashes of what came of it."""
    assert train(load(path, ["--out", str(out), *flags])) == Exit.DONE
    return hashes(out)


@pytest.fixture
def made(tmp_path: Path, linear: Path) -> Path:
    """A recipe of five pictures with captions, one of them held out, and its cache in a folder beside it."""
    pictures(tmp_path / "pictures", COUNT)
    cache = {"path": str(tmp_path / "cache")}
    return recipe(
        tmp_path, linear, cache=cache, train={"flip": True, "caption_dropout": 0.2}, validate={"holdout": 0.2}
    )


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    capsys.readouterr()
    assert main(["cache", *map(str, arguments), "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def test_training_finds_everything_that_was_encoded_ahead(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made.parent / "out"
    first = said(capsys, made)
    assert (first["encoded"], first["captions_encoded"]) == (2 * 4 + 1, 4 + 1 + 1)
    assert not out.exists()
    again = said(capsys, made)
    assert (again["encoded"], again["captions_encoded"], again["reused"]) == (0, 0, 9)
    cached = run(made, out)
    assert [event["encoded"] for event in events(out, "started")] == [0]
    without = ("--cache.latents", "false", "--cache.text", "false", "--cache.path", "")
    assert cached == run(made, made.parent / "uncached", *without)


def test_a_training_on_torch_then_loads_no_encoder(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_runs import watch

    seen = watch(monkeypatch)
    pictures(tmp_path / "pictures", COUNT)
    cache = {"path": str(tmp_path / "cache")}
    quick = {"steps": 1, "batch": 2, "device": "cpu"}
    path = recipe(tmp_path, blank, engine="torch", train=quick, cache=cache)
    assert main(["cache", str(path)]) == Exit.DONE
    assert set(seen.loaded) - {"tokenizer"} == {"vae", "text_encoder"}
    assert seen.encoded == (COUNT, COUNT)
    seen.loaded.clear()
    assert train(load(path)) == Exit.DONE
    assert set(seen.loaded) - {"tokenizer"} == {"unet"}
    assert seen.encoded == (COUNT, COUNT)


def test_shares_are_the_whole_and_may_run_at_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = [started("cache", made, "--share", f"{part}/3", "--json") for part in (1, 2, 3)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(answer["encoded"] for answer in answers) == 9
    assert said(capsys, made)["encoded"] == 0
    run(made, made.parent / "out")
    assert [event["encoded"] for event in events(made.parent / "out", "started")] == [0]


def test_a_filling_that_was_stopped_goes_on(made: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("pictures", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(load(made), Share(), stop)
    rest = fill(load(made), Share(), lambda what, done, total: None)
    assert (rest.encoded, rest.reused) == (5, 4)


def test_class_pictures_are_drawn_and_encoded_by_the_first_share(made: Path) -> None:
    prior = (
        "--prior.prompt",
        "a thing",
        "--prior.pictures",
        "2",
        "--prior.sampling_steps",
        "1",
        "--validate.holdout",
        "0",
    )
    loaded = load(made, [*prior, "--train.flip", "false"])
    done = [fill(loaded, Share(part, 2), lambda what, done, total: None) for part in (2, 1)]
    assert [each.encoded for each in done] == [2, 3 + 2]
    run(made, made.parent / "out", *prior, "--train.flip", "false")
    assert [event["encoded"] for event in events(made.parent / "out", "started")] == [0]


def flipped(folder: Path) -> None:
    """A bit in every entry that is large enough for values."""
    for path in folder.glob("packs/*.pack"):
        data = bytearray(path.read_bytes())
        for at in range(400, len(data), 701):
            data[at] ^= 4
        path.write_bytes(data)


def truncated(folder: Path) -> None:
    for path in folder.glob("packs/*.pack"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 7])


def headless(folder: Path) -> None:
    for path in folder.glob("packs/*.index"):
        path.write_bytes(path.read_bytes()[:100])


def missing(folder: Path) -> None:
    for path in folder.glob("packs/*.pack"):
        path.unlink()


@pytest.mark.parametrize("harm", [flipped, truncated, headless, missing], ids=lambda harm: harm.__name__)
def test_a_damaged_cache_costs_work_and_never_a_bit(made: Path, harm: Callable[[Path], None]) -> None:
    first, folder = run(made, made.parent / "first"), made.parent / "cache"
    harm(folder)
    assert run(made, made.parent / "second") == first
    assert run(made, made.parent / "third") == first
    assert main(["cache", "--verify", "--path", str(folder)]) == Exit.DONE
    assert run(made, made.parent / "fourth") == first


def test_a_cache_that_is_no_folder_is_a_storage_error(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made.parent / "cache").write_bytes(b"a file where the folder should be")
    assert main(["cache", str(made)]) == Exit.STORAGE
    assert "the cache could not be written" in capsys.readouterr().err


def test_what_is_kept_is_told_collected_and_cleared(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.parent / "cache"
    assert said(capsys, "--path", folder)["entries"] == 0
    said(capsys, made)
    size = said(capsys, "--size", "--path", folder)
    listed = said(capsys, "--list", "--path", folder)
    assert size["entries"] == listed["entries"] == sum(pack["entries"] for pack in listed["packs"])  # type: ignore[attr-defined]
    assert main(["cache", "--list", "--path", str(folder)]) == Exit.DONE
    assert "last used" in capsys.readouterr().out
    assert said(capsys, "--verify", "--path", folder)["damaged"] == 0
    assert said(capsys, "--collect", "--path", folder)["removed"] == 0
    assert said(capsys, "--collect", "--keep-days", "3", "--max-size", "1GB", "--path", folder)["removed"] == 0
    done = said(capsys, "--collect", "--max-size=9.5kB", "--path", folder)
    assert done["removed"]
    assert said(capsys, "--path", folder)["size"] <= 9500  # type: ignore[operator]
    assert said(capsys, "--clear", "--path", folder)["freed"]
    assert not list(folder.rglob("*.pack"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RECIPE", "--share", "3/2"], "--share 3/2 is not a part of a whole"),
        (["RECIPE", "--share", "half"], "--share half is not a part of a whole"),
        (["--share", "1/2"], "--share is a part of a recipe's work"),
        (["RECIPE", "--verify"], "--verify looks after the cache"),
        (["RECIPE", "--path", "x"], "--path looks after the cache"),
        (["RECIPE", "RECIPE"], "one recipe is encoded at a time"),
        (["--verify", "--clear"], "are two things to do"),
        (["--keep-days", "3"], "--keep-days says what --collect is to keep"),
        (["--collect", "--keep-days", "some"], "--keep-days some is not a number of days"),
        (["--collect", "--max-size", "20"], "--max-size 20 is not a size"),
        (["RECIPE", "--train.crop", "random", "--cache.text", "false"], "nothing of this recipe is kept"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["cache", *(str(made) if word == "RECIPE" else word for word in arguments)]) == Exit.RECIPE
    assert message in capsys.readouterr().err


def test_a_running_training_keeps_its_cache(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(made.parent / "cache")
    said(capsys, made)
    assert store.get("00" * 32) is None  # it has looked
    done = gesso("cache", "--clear", "--path", made.parent / "cache")
    assert done.returncode == Exit.STORAGE
    assert "1 running process uses this cache" in done.stderr
    store.close()
    assert gesso("cache", "--clear", "--path", made.parent / "cache").returncode == Exit.DONE


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_number_of_readers_decides_nothing(made: Path, crop: str) -> None:
    readers = [run(made, made.parent / count, "--train.crop", crop, "--train.readers", count) for count in "0124"]
    assert readers.count(readers[0]) == 4
