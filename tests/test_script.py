"""Other trainers' commands, run as they stand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from diffusers import StableDiffusionPipeline
from runs import events, pictures
from safetensors.numpy import load_file

from gesso.cli import main
from gesso.errors import Exit
from gesso.formats.convert import Request, convert


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


def test_a_shell_file_and_keys_of_the_recipe(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.sh").write_text("export STEPS=2\naccelerate launch " + " \\\n ".join(command), encoding="utf-8")
    for words in (["train.sh"], ["sh", "train.sh"]):
        assert main([*words, "--dry-run"]) == Exit.DONE
        assert "steps     3 of 4 pictures" in capsys.readouterr().out
    assert main([*command, "--train.steps", "2", "--dry-run"]) == Exit.DONE
    said = capsys.readouterr().out
    assert "steps = 2  # --train.steps" in said
    assert "steps     2 of 4 pictures" in said


def test_it_goes_on_from_the_checkpoint_that_is_named(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*command, "--resume_from_checkpoint=latest"]) == Exit.DONE
    assert main([*command, "--resume_from_checkpoint=elsewhere/checkpoint-2"]) == Exit.DONE
    assert [event["step"] for event in events(out, "stepped")] == [1, 2, 3, 3]
    assert (out / "checkpoint-3-left-1").is_dir()
    capsys.readouterr()
    assert main([*command, "--resume_from_checkpoint=checkpoint-1"]) == Exit.RECIPE
    assert "no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said", "code"),
    [
        (["--learning_rat=1e-4"], "learning_rate", Exit.RECIPE),
        (["--mixed_precision=fp8"], "mixed_precision", Exit.RECIPE),
        (["--train_data_dir=nowhere"], "nowhere", Exit.DATA),
        (["--rank=0"], "rank", Exit.RECIPE),
        (["--train_batch_size=-1"], "at least 1", Exit.RECIPE),
        (["--dataset_name=other"], "leave one of the two out", Exit.RECIPE),
        (["--dataset_from_disk"], "another maker", Exit.RECIPE),
        (["--push_to_hub"], "--hub_model_id", Exit.RECIPE),
        (["--report_to=wandb"], "login", Exit.RECIPE),
        (["--pretrained_model_name_or_path=none.ckpt"], "none.ckpt", Exit.RECIPE),
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


def test_a_refused_command_leaves_a_run_and_a_model_as_they_are(
    tmp_path: Path, blank: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == Exit.DONE
    kept = (tmp_path / "out" / "command.toml").read_bytes()
    assert main([*(word for word in command if "--rank" not in word), "--rank=9"]) == Exit.RECIPE
    assert (tmp_path / "out" / "command.toml").read_bytes() == kept
    base = tmp_path / "base"
    shutil.copytree(blank, base)
    before = sorted(base.rglob("*"))
    flags = [f"--pretrained_model_name_or_path={base}", f"--output_dir={base}"]
    assert main([*command, *flags, "--dry-run"]) == main([*command, *flags]) == Exit.RECIPE
    assert sorted(base.rglob("*")) == before
    assert "must stay as it is" in capsys.readouterr().err


def test_what_a_download_leaves_is_no_picture(tmp_path: Path, command: list[str]) -> None:
    cache = tmp_path / "photos" / ".cache" / "huggingface"
    cache.mkdir(parents=True)
    (cache / "0.png.metadata").write_text("x", encoding="utf-8")
    (cache / "0.png").write_bytes(b"no picture")
    assert main([*command, "--dry-run"]) == Exit.DONE


def test_a_data_set_of_the_summary_is_made_and_trained_on(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [str(path.resolve()) for path in sorted(pictures(tmp_path / "images", captions=False).iterdir())]
    captions = {place: f"thing {number}" for number, place in enumerate(places)}
    Path("image_captions.json").write_text(json.dumps(captions), encoding="utf-8")
    Path("validation_prompts.txt").write_text("a thing\n", encoding="utf-8")
    assert main(["create_dataset.py", "--save_to_disk=True"]) == Exit.DONE
    said = capsys.readouterr().out
    assert "its README says the opposite" in said
    (shard,) = Path("datasets/Text2Image_example/train").glob("*.arrow")
    with pyarrow.memory_map(str(shard)) as file:
        found = pyarrow.ipc.open_stream(file).read_all()
    assert sorted(found["text"].to_pylist()) == sorted(captions.values())
    run = [
        "train_text_to_image_lora.py", f"--pretrained_model_name_or_path={blank}", "--dataset_from_disk",
        "--dataset_disk_path=datasets/Text2Image_example", "--resolution=64", "--max_train_steps=1",
        "--train_batch_size=1", "--validation_prompts_dir=validation_prompts.txt", "--num_validation_images=1",
    ]  # fmt: skip
    assert main([*run, "--sample.steps=1", "--sample.scheduler=DDIM"]) == Exit.DONE
    assert events(Path("sd-model-finetuned-lora"), "started")[0]["pictures"] == len(captions)
    assert Path("sd-model-finetuned-lora/pytorch_lora_weights.safetensors").is_file()


def test_a_model_in_mindspores_form_is_trained_and_draws(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(Path("dog"), captions=False)
    pictures(Path("class"), 2, captions=False)
    convert(Request(source=blank, target=Path("models/base.ckpt")))
    run = [
        "python", "train_dreambooth.py", "--mode=0", "--use_parallel=False", "--instance_data_dir=dog",
        "--instance_prompt=a photo of sks dog", "--class_data_dir=class", "--class_prompt=a photo of a dog",
        "--pretrained_model_path=models/", "--pretrained_model_file=base.ckpt", f"--model.like={blank}",
        "--image_size=64", "--num_class_images=2", "--train_data_repeats=1", "--epochs=1", "--train_batch_size=5",
        "--output_path=output/txt2img", "--train_text_encoder=True", "--start_learning_rate=1e-3",
    ]  # fmt: skip
    assert main(run) == Exit.DONE
    draw = ["text_to_image.py", "--prompt", "a sks dog on the hill", "--output_path", "vis", "--n_iter=1",
            "--n_samples=2", "--H=64", "--W=64", "--sampling_steps=2", "--scale=1"]  # fmt: skip
    assert main([*draw, "--ckpt_path", "output/txt2img"]) == Exit.DONE
    assert main([*draw, "--ckpt_path", "models/base.ckpt", "--like", str(blank)]) == Exit.DONE
    files = sorted(Path("vis/samples").glob("*.png"))
    drawn = [png.read_bytes() for png in files]
    assert [png.name for png in files] == [f"{number:05d}.png" for number in range(4)]
    assert len(set(drawn)) == 4


@pytest.mark.slow
def test_a_lora_is_written_for_other_programs_too(tmp_path: Path, blank_xl: Path) -> None:
    pictures(tmp_path / "dog", 2, captions=False)
    run = [
        "train_dreambooth_lora_sdxl.py", f"--pretrained_model_name_or_path={blank_xl}", "--resolution=64",
        f"--instance_data_dir={tmp_path / 'dog'}", "--instance_prompt=a photo of sks dog", "--train_batch_size=1",
        f"--output_dir={tmp_path / 'out'}", "--output_kohya_format",
    ]  # fmt: skip
    for steps in (1, 2):  # a longer run replaces it
        assert main([*run, f"--max_train_steps={steps}"]) == Exit.DONE
        made = load_file(tmp_path / "out" / "pytorch_lora_weights_kohya.safetensors")
        own = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
        assert all(name.startswith("lora_unet_") for name in made)
        ups = [value.tobytes() for name, value in made.items() if name.endswith("lora_up.weight")]
        assert sorted(ups) == sorted(
            value.tobytes() for name, value in own.items() if ".up." in name or "lora_B" in name
        )


def test_help_says_where_the_flags_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_text_to_image_lora.py", "--help"]) == Exit.DONE
    assert "docs/scripts.md" in capsys.readouterr().out


def test_a_script_that_is_none_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_text_to_imag.py", "--resolution=64"]) == Exit.RECIPE
    assert "train_text_to_image" in capsys.readouterr().err
