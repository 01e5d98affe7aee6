"""The command line as a shell sees it: help, speed, exit codes, messages, and the verbs train and generate."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gesso import __version__, cli, gallery
from gesso.additions import lora_file
from gesso.commands import train
from gesso.engines.engine import SampleRequest
from gesso.errors import Exit, LockedError, RecipeError
from gesso.formats import png
from gesso.generate import Request, check
from gesso.schema import DataTable

ROOT = Path(__file__).parent.parent
HEAVY = ("numpy", "pydantic", "torch", "diffusers", "transformers", "peft", "PIL", "rich", "mindspore")


def gesso(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "gesso", *words], capture_output=True, text=True, cwd=cwd, env=env)


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, gesso, gesso.cli\n"
        "assert gesso.cli.main(['--help']) == 0\n"
        "assert gesso.cli.main(['generate', '--help']) == 0\n"
        "assert gesso.cli.main(['train', '--help']) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    took = []
    for _ in range(3):
        began = time.perf_counter()
        assert gesso("--help").returncode == 0
        took.append(time.perf_counter() - began)
    assert min(took) <= 0.3


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"gesso {verb}" in shown
    assert "examples:" in shown
    assert "--debug" in shown
    assert verb in cli.overview()


def test_version_and_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert [cli.main(["-V"]), cli.main(["--version"]), cli.main([])] == [0, 0, Exit.RECIPE]
    shown = capsys.readouterr().out
    assert shown.startswith(f"gesso {__version__}\ngesso {__version__}\nusage: gesso VERB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x.toml"], "there is no verb trian\n  What to do: did you mean `gesso train`?"),
        (["xyz"], "there is no verb xyz\n  What to do: use one of demo, doctor, new, check, caption, cache"),
        (["generate", "--promt", "x"], "there is no flag --promt\n  What to do: did you mean --prompt?"),
        (["generate", "--model", "tiny", "--out", "x", "--st", "5"], "there is no flag --st\n"),
        (["train"], "which recipe?"),
        (["train", "a.toml", "b.toml"], "one recipe is carried out at a time, but a.toml, b.toml are given"),
        (["train", "none.toml"], "none.toml: there is no such recipe"),
        (["demo", "subjct"], "did you mean `gesso demo subject`?"),
        (["demo", "--full"], "--full has no effect on the demo subject"),
        (["new"], "the following arguments are required: PHOTOS"),
    ],
)
def test_messages_of_wrong_command_lines(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == Exit.RECIPE
    assert said in capsys.readouterr().err


def test_shell_sees_exit_codes_and_tracebacks_only_with_debug(tmp_path: Path) -> None:
    (tmp_path / "dog.toml").write_text('[[data]]\npath = "nowhere"\n[train]\nstpes = 5\n')
    plain = gesso("train", "dog.toml", "--train.batch", "0", cwd=tmp_path)
    assert plain.returncode == Exit.RECIPE
    assert plain.stdout == ""
    assert plain.stderr == (
        "gesso: 2 things in dog.toml with its flags cannot be carried out:\n"
        "  dog.toml:4: there is no key train.stpes; did you mean train.steps?\n"
        "  --train.batch: train.batch is 0, must be at least 1\n"
        "  What to do: docs/recipe.md describes every key\n"
    )
    for words in (["--debug", "train", "dog.toml"], ["train", "--debug", "dog.toml"], ["train", "dog.toml", "--debug"]):
        debug = gesso(*words, cwd=tmp_path)
        assert (debug.returncode, "Traceback" in debug.stderr) == (Exit.RECIPE, True)
    assert gesso("train", "--data.path", "nowhere", "--dry-run", cwd=tmp_path).returncode == Exit.DATA


def test_a_reader_that_leaves_early_is_no_error() -> None:
    words = f'"{sys.executable}" -m gesso --help | true; exit ${{PIPESTATUS[0]}}'
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([bash, "-c", words], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


def failing(error: BaseException) -> Callable[..., int]:
    def run(*_: object, **__: object) -> int:
        raise error

    return run


def test_unknown_errors_are_one_line_and_the_log_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data.path", "photos", "--out", str(out)]
    monkeypatch.setattr(train, "_train", failing(ZeroDivisionError("by nothing")))
    assert cli.main(words) == 1
    line = "gesso met an error it does not know: ZeroDivisionError: by nothing; run again with --debug\n"
    assert capsys.readouterr().err == line
    out.mkdir()
    assert cli.main(words) == 1
    assert capsys.readouterr().err == f"{line}  {out / 'run.log'} has the details\n"
    assert "Traceback" in (out / "run.log").read_text()

    (out / "run.log").unlink()
    monkeypatch.setattr(train, "_train", failing(LockedError("in use", where="host", todo="wait")))
    assert cli.main(words) == Exit.LOCKED
    assert capsys.readouterr().err == "gesso: host: in use\n  What to do: wait\n"
    assert not (out / "run.log").exists(), "the log belongs to the run that holds the lock"
    monkeypatch.setattr(train, "_train", failing(KeyboardInterrupt()))
    assert cli.main(words) == Exit.STOPPED
    assert capsys.readouterr().err == "gesso: stopped (Ctrl-C)\n"


def test_train_hands_over_the_recipe_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def run(loaded: object, options: argparse.Namespace) -> int:
        print("for people")
        seen.append((loaded.recipe, options.dry_run))  # type: ignore[attr-defined]
        return 0

    monkeypatch.setattr(train, "_train", run)
    path = tmp_path / "dog.toml"
    path.write_text('[[data]]\npath = "photos"\n')
    flags = ["--train.flip", "--train.steps", "5", "--sample.negative=-x", "--sample.prompts", "a dog"]
    for words in ([str(path), *flags, "--dry_run"], [*flags, str(path), "--dry-run"], ["--dry-run", *flags, str(path)]):
        assert cli.main(["train", *words]) == 0
    assert seen[0] == seen[1] == seen[2]
    assert (seen[0][0].train.steps, seen[0][0].sample.negative, seen[0][1]) == (5, "-x", True)
    capsys.readouterr()
    assert cli.main(["train", str(path), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert (answer["exit"], answer["dry_run"], answer["recipe"]["data"]) == (
        0,
        True,
        [DataTable(path="photos").model_dump(exclude_none=True)],
    )
    assert shown.err == "for people\n"


def test_requests_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError) as caught:
        check(
            Request(
                model="none",
                prompts=("a", " "),
                out=tmp_path / "file",
                seeds=(1, 1),
                steps=0,
                guidance=-1.0,
                width=100,
                height=4,
            )
        )
    assert str(caught.value).replace(str(tmp_path), "") == (
        "7 things cannot be carried out:\n"
        "  a prompt is empty: say what to draw\n"
        "  --width is 100, must be divisible by 8; the nearest are 96 and 104\n"
        "  --height is 4, must be divisible by 8; the nearest are 8 and 16\n"
        "  --steps is 0, must be at least 1\n"
        "  --guidance is -1, must be at least 0\n"
        "  the same --seed is given twice, which would draw the same picture\n"
        "  --out /file is a file, must be a folder"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "tiny"], "there is no prompt"),
        (["--model", "no-model", "--prompt", "x"], 'there is no model "no-model"'),
        (["--model", "tiny", "--prompt", "x", "--strength", "2"], "--strength has no effect without a LoRA"),
        (["--model", "tiny", "--prompt", "x", "--lora", "none.safetensors"], "none.safetensors does not exist"),
        (["--model", "tiny", "--prompt", "x", "--count", "0"], "--count is 0"),
        (["--model", "tiny", "--prompt", "x", "--count", "2", "--seed", "1", "--seed", "2"], "are both given"),
        (["--model", "tiny", "--prompts-file", "none.txt"], "none.txt: the prompts cannot be read"),
    ],
)
def test_generate_refuses(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", *words, "--out", str(tmp_path / "pics")]) == Exit.RECIPE
    assert said in capsys.readouterr().err
    assert not (tmp_path / "pics").exists()


def test_numbers_go_on_and_loras_are_found(tmp_path: Path) -> None:
    wanted = [SampleRequest(prompt="a", seed=0)]
    assert gallery.places(tmp_path / "none", wanted) == [tmp_path / "none" / "00000.png"]
    for name in ("00000.png", "00007.png", "holiday-00099.png", "123.png"):
        (tmp_path / name).write_bytes(b"")
    assert gallery.places(tmp_path, wanted) == [tmp_path / "00008.png"]
    lora = tmp_path / "pytorch_lora_weights.safetensors"
    lora.write_bytes(b"")
    assert lora_file(tmp_path) == lora_file(lora) == lora
    with pytest.raises(RecipeError, match=r"is not a \.safetensors file"):
        lora_file(tmp_path / "123.png")


def test_generate_draws_the_same_picture_again_and_says_how_it_was_made(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    words = ["generate", "--model", str(blank), "--prompts_file", str(tmp_path / "prompts.txt"), "--steps", "2"]
    words += ["--out", str(tmp_path / "pics"), "--count", "2", "--seed", "5", "--device", "cpu", "--json"]
    assert cli.main(words) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cli.main([*words[:-1], "--width", "32"]) == 0
    assert [Path(name).name for name in first] == [f"{number:05d}.png" for number in range(4)]
    assert capsys.readouterr().out.splitlines()[-1].endswith("00007.png")
    made = [png.read(Path(name)) for name in first]
    assert [(each["prompt"], each["seed"]) for each in made] == [("a cat", 5), ("a cat", 6), ("a dog", 5), ("a dog", 6)]
    assert (made[0]["width"], made[0]["model"]) == (64, blank.name), "no path of this machine goes into a picture"
    assert png.read(tmp_path / "pics" / "00004.png")["width"] == 32
    assert cli.main(["generate", "--model", str(blank), "--prompt", "a dog", "--steps", "2", "--seed", "6", "--out",
                     str(tmp_path / "again"), "--device", "cpu"]) == 0  # fmt: skip
    assert (tmp_path / "again" / "00000.png").read_bytes() == Path(first[3]).read_bytes()
