"""A finished run on the Hub: a stub on this machine takes it, and no other host is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from push_parts import TOKEN, Hub, taking
from runs import events, gesso, pictures, recipe


@pytest.fixture
def hub() -> Iterator[Hub]:
    with taking() as made:
        yield made


@pytest.fixture
def run(tmp_path: Path, linear: Path) -> Path:
    pictures(tmp_path / "pictures", captions=False)
    return recipe(
        tmp_path,
        linear,
        hub={"push": "me/dog"},
        data=[{"path": str(tmp_path / "pictures"), "prompt": "a photo of sks dog"}],
        train={"steps": 2, "batch": 2},
        save={"every": 1},
        sample={"prompts": ["A photo of sks dog in a bucket"], "steps": 2},
    )


def train(hub: Hub, path: Path, *flags: str, **environment: str) -> Any:
    given = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
    given |= {"HF_HOME": str(path.parent / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
    return gesso("train", path, *flags, env=given)


def test_a_run_is_pushed_with_its_card_and_pictures(hub: Hub, run: Path, tmp_path: Path) -> None:
    done = train(hub, run, "--track.console", "lines")
    assert done.returncode == 0, done.stderr
    assert f"on the Hub: {hub.address}/me/dog" in done.stdout
    assert hub.private
    out = tmp_path / "out"
    sample = "samples/step-2/p00-s0.png"
    assert hub.files == {
        name: (out / name).read_bytes() for name in ("pytorch_lora_weights.safetensors", "README.md", sample)
    }
    front = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
    assert front["instance_prompt"] == "a photo of sks dog"
    assert front["widget"] == [{"text": "A photo of sks dog in a bucket", "output": {"url": sample}}]


def test_a_whole_model_is_pushed_as_a_pipeline(hub: Hub, run: Path, tmp_path: Path) -> None:
    text = run.read_text(encoding="utf-8").replace('kind = "lora"\nrank = 2', 'kind = "none"')
    run.write_text(text, encoding="utf-8")
    done = train(hub, run, "--hub.private", "false")
    assert done.returncode == 0, done.stderr
    assert not hub.private
    out, index = tmp_path / "out", "model_index.json"
    whole = {path.relative_to(out).as_posix() for part in out.iterdir() if (part / "config.json").is_file()
             for path in part.rglob("*") if path.is_file()}  # fmt: skip
    assert {index, "README.md"} | whole <= set(hub.files)
    assert not [name for name in hub.files if name.startswith(("checkpoint", "events", "recipe", "logs", "run"))]


@pytest.mark.parametrize(
    ("flags", "environment", "said", "code"),
    [
        (("--hub.push", "dog"), {}, "is no name on the Hub", 2),
        (("--hub.push", ""), {}, "hub.private has no effect without hub.push", 2),
        ((), {"HF_TOKEN": ""}, "there is no token to upload with", 6),
        ((), {"HF_TOKEN": "hf_other"}, "the Hub does not accept the token", 6),
        ((), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", 6),
        ((), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/dog: the upload failed", 6),
    ],
)
def test_what_could_not_be_pushed_does_not_begin(
    hub: Hub, run: Path, tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], said: str, code: int
) -> None:
    if flags == ("--hub.push", ""):
        flags = (*flags, "--hub.private", "false")
    done = train(hub, run, *flags, **environment)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert hub.files == {}
    assert not (tmp_path / "out" / "events.jsonl").exists()


def test_a_dry_run_makes_nothing_there(hub: Hub, run: Path) -> None:
    done = train(hub, run, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "upload    me/dog" in done.stdout
    assert hub.asked == []


def test_what_fails_at_the_end_is_done_by_the_same_command(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.takes = False
    done = train(hub, run)
    assert done.returncode == 6
    assert "me/dog: the run is complete, but it is not on the Hub" in done.stderr
    assert "start the same command again" in done.stderr
    out = tmp_path / "out"
    assert events(out)[-1]["event"] == "finished"
    weights = (out / "pytorch_lora_weights.safetensors").read_bytes()
    hub.takes = True
    done = train(hub, run)
    assert done.returncode == 0, done.stderr
    assert len(events(out, "stepped")) == 2
    assert hub.files["pytorch_lora_weights.safetensors"] == weights
