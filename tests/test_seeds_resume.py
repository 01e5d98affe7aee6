"""What a script's command leaves, and how another goes on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from runs import events, hashes, pictures

from gesso.cli import main
from gesso.errors import Exit


def train(base: Path, *flags: str) -> int:
    return main(
        [
            "train_text_to_image_lora.py",
            f"--pretrained_model_name_or_path={base}",
            "--train_data_dir=photos",
            "--resolution=64",
            "--train_batch_size=1",
            "--seed=42",
            "--checkpointing_steps=1",
            "--checkpoints_total_limit=2",
            *flags,
        ]
    )


def test_checkpoints_are_limited_and_gone_on_from(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    assert train(blank, "--output_dir=out", "--max_train_steps=3") == Exit.DONE
    out = Path("out")
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert list((out / "logs").glob("events.out.tfevents.*"))
    early = tmp_path / "early"
    (out / "checkpoint-2").rename(early)  # a path that is not in the output folder is one, too
    assert train(blank, "--output_dir=out", "--max_train_steps=4", "--resume_from_checkpoint=latest") == Exit.DONE
    told = events(out, "stepped")
    assert [event["step"] for event in told] == [1, 2, 3, 4]
    capsys.readouterr()

    flags = ("--output_dir=other", "--max_train_steps=4", f"--resume_from_checkpoint={early}")
    assert train(blank, *flags) == Exit.DONE
    again = events(Path("other"), "stepped")
    assert [(event["step"], event["loss"]) for event in again] == [
        (event["step"], event["loss"]) for event in told if event["step"] > 2
    ]
    files = "pytorch_lora_weights.safetensors"
    assert hashes(Path("other"), files) == hashes(out, files)

    pipe = StableDiffusionPipeline.from_pretrained(blank)
    for folder in (out, out / "checkpoint-3"):
        pipe.load_lora_weights(folder)
        pipe.unload_lora_weights()
