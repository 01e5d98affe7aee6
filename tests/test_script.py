"""Other trainers' commands, run as they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from runs import events, pictures

from gesso.cli import main
from gesso.errors import Exit


@pytest.fixture
def command(tmp_path: Path, blank: Path) -> list[str]:
    """A LoRA as the diffusers documentation writes it, small."""
    pictures(tmp_path / "photos")
    return [
        "train_text_to_image_lora.py",
        f"--pretrained_model_name_or_path={blank}",
        f"--train_data_dir={tmp_path / 'photos'}",
        "--resolution=64",
        "--center_crop",
        "--train_batch_size=2",
        "--gradient_accumulation_steps=2",
        "--max_train_steps=3",
        "--learning_rate=1e-3",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--rank=4",
        "--seed=42",
        "--checkpointing_steps=2",
        f"--output_dir={tmp_path / 'out'}",
    ]


@pytest.mark.parametrize("start", [[], ["python"], ["accelerate", "launch", "--mixed_precision=no"]])
def test_a_command_is_carried_out(
    tmp_path: Path, blank: Path, command: list[str], start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*start, *command]) == Exit.DONE
    out, said = tmp_path / "out", capsys.readouterr().out
    assert "--learning_rate" in said
    assert (out / "command.toml").read_text(encoding="utf-8") in said
    steps = events(out, "stepped")
    assert [event["step"] for event in steps] == [1, 2, 3]
    assert events(out, "started")[0]["batch"] == 4
    assert {event["lr"] for event in steps} == {1e-3}
    assert (out / "checkpoint-2" / "pytorch_lora_weights.safetensors").is_file()
    pipe = StableDiffusionPipeline.from_pretrained(blank)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(out)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert any(not np.array_equal(before[name].numpy(), after[name].numpy()) for name in before)


def test_a_dry_run_writes_nothing(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--dry-run"]) == Exit.DONE
    assert "steps     3 of 4 pictures" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said", "code"),
    [
        (["--learning_rat=1e-4"], "learning_rate", Exit.RECIPE),
        (["--push_to_hub"], "push_to_hub", Exit.RECIPE),
        (["--train_data_dir=nowhere"], "nowhere", Exit.DATA),
        (["--rank=0"], "rank", Exit.RECIPE),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    tmp_path: Path, command: list[str], changed: list[str], said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name = changed[0].partition("=")[0]
    kept = [word for word in command if word.partition("=")[0] != name]
    assert main([*kept, *changed]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_script_that_is_none_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_text_to_imag.py", "--resolution=64"]) == Exit.RECIPE
    assert "train_text_to_image" in capsys.readouterr().err
