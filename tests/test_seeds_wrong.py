"""Commands that cannot be carried out: one sentence, and exit code 2 or 3, before anything is loaded or written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from runs import gesso, pictures

from gesso.cli import main
from gesso.errors import Exit

DREAM = ("train_dreambooth_lora_sdxl.py", "--instance_data_dir=photos", "--instance_prompt=a photo of sks dog")
TEXT = ("train_text_to_image.py", "--train_data_dir=photos")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: Path) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "base").symlink_to(linear)


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        ((*DREAM, "--do_edm_style_training", "--snr_gamma=5"), "snr_gamma", Exit.RECIPE),
        ((*DREAM, "--with_prior_preservation"), "--class_prompt", Exit.RECIPE),
        ((*DREAM, "--dataset_name=owner/name"), "dataset_name", Exit.RECIPE),
        ((*DREAM, "--train_batch_size=0"), "train_batch_size", Exit.RECIPE),
        ((*DREAM, "--rank=-4"), "rank", Exit.RECIPE),
        ((*DREAM, "--optimizer=sgd2"), "sgd2", Exit.RECIPE),
        ((*DREAM, "--report_to=comet_ml"), "Comet", Exit.RECIPE),
        ((*DREAM, "--push_to_hub"), "--hub_model_id=OWNER/NAME", Exit.RECIPE),
        ((*TEXT, "--learning_rate=-1e-5"), "learning_rate", Exit.RECIPE),
        ((*TEXT, "--max_train_steps=0"), "max_train_steps", Exit.RECIPE),
        ((*TEXT, "--snr_gama=5"), "snr_gamma", Exit.RECIPE),
        ((*TEXT, "--validation_prompt=a cat"), "validation_prompt", Exit.RECIPE),
        ((*TEXT, "--mixed_precision=fp8"), "fp8", Exit.RECIPE),
        ((*TEXT, "--resume_from_checkpoint=nowhere"), "nowhere", None),
        (("train_text_to_image.py",), "--train_data_dir", Exit.RECIPE),
        (("train_text_to_image.py", "--train_data_dir=empty"), "empty", Exit.DATA),
        (("train_text_to_image.py", "--train_data_dir=missing"), "missing", Exit.DATA),
        (("train_text_to_image_lora.py", "--dataset_from_disk"), "--dataset_disk_path", Exit.RECIPE),
        (("train_text_to_image_lora.py", "--dataset_disk_path=photos"), "--dataset_from_disk", Exit.RECIPE),
    ],
)
def test_it_is_said_and_nothing_begins(
    flags: tuple[str, ...], said: str, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(sys.modules)
    found = main([*flags, "--pretrained_model_name_or_path=base", "--output_dir=out"])
    assert found in ((code,) if code is not None else (Exit.RECIPE, Exit.DATA, Exit.STORAGE))
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
    assert not {"diffusers", "transformers"} & (set(sys.modules) - before)


def test_a_tracker_without_a_login(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="gesso[wandb] is not installed")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    given = {**kept, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    flags = (*TEXT, "--pretrained_model_name_or_path=base", "--output_dir=out", "--report_to=wandb")
    done = gesso(*flags, env=given)
    assert done.returncode == Exit.RECIPE
    assert 'track.wandb = "text2image-fine-tune" needs a login' in done.stderr
    assert not Path("out").exists()


def test_an_unknown_key_of_the_json_file() -> None:
    Path("config.json").write_text(json.dumps({"epoch": 3}), encoding="utf-8")
    words = "train_dreambooth.py --mode=0 --use_parallel=False --instance_data_dir=photos --instance_prompt=a"
    assert main([*words.split(), "--train_config=config.json", "--pretrained_model_path=base"]) == Exit.RECIPE
