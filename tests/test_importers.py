"""Commands of the diffusers and mindone scripts as recipes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_parts import command, fates, folder, recipe, stops

from gesso import cli
from gesso.errors import Exit, RecipeError
from gesso.importers import diffusers_flags, shell, translate

XL = "stabilityai/stable-diffusion-xl-base-1.0"
TEXT = "python train_text_to_image.py --pretrained_model_name_or_path=owner/base --train_data_dir=photos "
LORA = "python train_text_to_image_lora.py --pretrained_model_name_or_path=owner/base --train_data_dir=photos "
SDXL = f"python train_text_to_image_sdxl.py --pretrained_model_name_or_path={XL} --train_data_dir=photos "
DREAM = "python train_dreambooth.py --pretrained_model_name_or_path=owner/base --instance_data_dir=dog "
DREAM += "--instance_prompt='a photo of sks dog' "
DREAM_XL = DREAM.replace("train_dreambooth.py", "train_dreambooth_lora_sdxl.py").replace("owner/base", XL)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_first_command_that_the_scripts_pages_show() -> None:
    found = command(
        """
        export MODEL_NAME="CompVis/stable-diffusion-v1-4"  # the base
        export TRAIN_DIR='path to/pictures'

        accelerate launch --mixed_precision="fp16" train_text_to_image.py \\
          --pretrained_model_name_or_path=$MODEL_NAME \\
          --train_data_dir="${TRAIN_DIR}" \\
          --use_ema \\
          --resolution=512 --center_crop --random_flip \\
          --train_batch_size=1 --gradient_accumulation_steps=4 --gradient_checkpointing \\
          --max_train_steps=15000 --learning_rate=1e-05 --max_grad_norm=1 \\
          --lr_scheduler="constant" --lr_warmup_steps=0 \\
          --output_dir="sd-model-$(date +%Y)" \\
          # the end
        """
    )
    assert (found.model.base, found.data[0].path, found.data[0].prompt) == (
        "CompVis/stable-diffusion-v1-4",
        "path to/pictures",
        None,
    )
    assert (found.adapter.kind, found.optim.ema, found.out) == ("none", 0.9999, f"sd-model-{time.strftime('%Y')}")
    train = found.train
    assert (train.batch, train.micro_batch, train.steps, train.resolution) == (4, 1, 15000, 512)
    assert (train.crop, train.flip, train.precision, train.gradient_checkpointing) == ("center", True, "fp16", True)
    assert (found.optim.lr, found.optim.clip, found.optim.warmup, found.save.every) == (1e-5, 1.0, 0, 500)


def test_what_a_script_takes_by_default_is_taken() -> None:
    found = command(TEXT)
    assert (found.train.epochs, found.train.batch, found.train.crop, found.train.resolution) == (100, 16, "random", 512)
    assert (found.out, found.optim.lr, found.optim.schedule) == ("sd-model-finetuned", 1e-4, "constant")
    found = command(LORA)
    assert (found.adapter.kind, found.adapter.rank, found.adapter.alpha) == ("lora", 4, None)
    found = command(DREAM)
    assert (found.train.epochs, found.train.batch, found.optim.lr) == (1, 4, 5e-6)
    found = command(DREAM_XL)
    assert (found.optim.weight_decay, found.train.resolution, found.data[0].prompt) == (
        1e-4,
        1024,
        "a photo of sks dog",
    )
    assert found.optim.text_encoder_lr is None


def test_devices_and_accumulation_become_the_batch() -> None:
    for launcher in (
        "accelerate launch --multi_gpu --num_processes 2",
        "msrun --worker_num=2 --log_dir=x",
        "torchrun --nproc_per_node 2",
    ):
        line = LORA.replace("python", launcher) + "--train_batch_size 3 --gradient_accumulation_steps 5"
        found = command(line)
        assert (found.train.batch, found.train.micro_batch) == (30, 3)
    found = command(LORA + "--train_batch_size 3 --scale_lr --learning_rate 1e-4 --gradient_accumulation_steps 2")
    assert found.optim.lr == pytest.approx(6e-4)


def test_dropout_takes_the_batch_whole() -> None:
    line = DREAM_XL + "--lora_dropout 0.1 --train_batch_size 2 --gradient_accumulation_steps 2 --max_train_steps 9"
    found = command(line)
    assert (found.train.batch, found.train.micro_batch, found.adapter.dropout) == (4, 0, 0.1)


def test_warm_up_is_ignored_where_the_script_ignores_it() -> None:
    assert command(LORA + "--lr_warmup_steps 100").optim.warmup == 0
    found = command(LORA + "--lr_scheduler cosine --lr_warmup_steps 100 --max_train_steps 400")
    assert (found.optim.schedule, found.optim.warmup, found.train.steps) == ("cosine", 100, 400)
    assert list(stops(LORA + "--lr_scheduler cosine --max_train_steps 400")) == ["--lr_warmup_steps"]


def test_zero_is_off_and_a_negative_stops() -> None:
    found = command(LORA + "--snr_gamma 0 --max_grad_norm 0 --noise_offset 0")
    assert (found.objective.weighting, found.optim.clip, found.objective.noise_offset) == ("uniform", 0, 0)
    assert command(LORA + "--snr_gamma 5").objective.gamma == 5
    assert stops(LORA + "--snr_gamma -1") == {
        "--snr_gamma": "objective.gamma would be -1, but must be a number, at least 0"
    }
    assert "--train_batch_size" in stops(LORA + "--train_batch_size 0")
    assert "--learning_rate" in stops(LORA + "--learning_rate=-1")


def test_an_objective_of_each_script() -> None:
    found = command(TEXT + "--input_perturbation 0.1 --dream_training --prediction_type epsilon --noise_offset 0.05")
    assert found.objective.input_perturbation == 0.1
    assert (found.objective.dream, found.objective.dream_detail, found.objective.prediction) == (True, 1.0, "epsilon")
    found = command(SDXL + "--timestep_bias_strategy later --timestep_bias_multiplier 3 --timestep_bias_portion 0.5")
    assert (found.objective.times, found.objective.times_multiplier, found.objective.times_portion) == ("later", 3, 0.5)
    assert command(SDXL + "--timestep_bias_strategy later").objective.times == "uniform"
    assert (
        "above 0"
        in stops(SDXL + "--timestep_bias_strategy later --timestep_bias_multiplier 0")["--timestep_bias_multiplier"]
    )
    assert command(DREAM + "--offset_noise").objective.noise_offset == 0.1
    assert command(DREAM_XL + "--do_edm_style_training").objective.edm_style
    playground = DREAM_XL.replace(XL, "playgroundai/playground-v2.5-1024px-aesthetic")
    assert not command(playground + "--do_edm_style_training").objective.edm_style
    assert "--snr_gamma" in stops(DREAM_XL + "--do_edm_style_training --snr_gamma 5")


def test_prior_preservation(tmp_path: Path) -> None:
    folder(tmp_path / "dog", 5)
    folder(tmp_path / "class", 3)
    prior = "--with_prior_preservation --class_prompt 'a dog' --class_data_dir class --num_class_images 200 "
    found = command(DREAM + prior + "--prior_loss_weight 0.5 --num_train_epochs 2")
    assert (found.prior.prompt, found.prior.path, found.prior.pictures, found.prior.weight) == (
        "a dog",
        "class",
        200,
        0.5,
    )
    # The script's epoch has as many pictures as the larger set.
    assert found.train.steps == 2 * 200 / 4
    assert (found.prior.sampling_steps, found.prior.guidance) == (50, 7.5)
    drawn = DREAM.replace("dreambooth.py", "dreambooth_lora.py") + prior + "--validation_prompt x --validation_epochs 2"
    assert command(drawn).sample.every_epochs == 2 * 200 / 5
    missing = translate([DREAM + prior.replace("class_data_dir class", "class_data_dir none") + "--max_train_steps 9"])
    assert fates(missing)["--class_data_dir"] == "differs"
    assert recipe(missing).prior.path == ""
    without = translate([DREAM + "--class_prompt 'a dog' --max_train_steps 9"])
    assert fates(without)["--class_prompt"] == "harmless"
    both = {"--class_prompt", "--class_data_dir"}
    assert set(stops(DREAM + "--with_prior_preservation --max_train_steps 9")) == both
    (tmp_path / "dog").rename(tmp_path / "cat")
    assert "--max_train_steps" in stops(DREAM + prior)


def test_text_encoders_and_optimisers() -> None:
    found = command(DREAM + "--train_text_encoder --use_8bit_adam --adam_beta2 0.99")
    assert (found.model.train, found.optim.name, found.optim.betas) == (
        ("unet", "text_encoder"),
        "adamw_8bit",
        (0.9, 0.99),
    )
    found = command(DREAM_XL + "--train_text_encoder --use_dora --rank 8")
    assert found.model.train == ("unet", "text_encoder", "text_encoder_2")
    assert (found.optim.text_encoder_lr, found.optim.text_encoder_weight_decay) == (5e-6, 1e-3)
    assert (found.adapter.kind, found.adapter.rank) == ("dora", 8)
    line = (
        DREAM_XL
        + "--train_text_encoder --optimizer prodigy --learning_rate 1 --prodigy_decouple False --prodigy_beta3 0.9"
    )
    found = command(line)
    assert (found.optim.name, found.optim.decouple, found.optim.beta3, found.optim.lr) == ("prodigy", False, 0.9, 1)
    assert found.optim.text_encoder_lr is None
    assert "set optim.lr = 1" in stops(DREAM_XL + "--optimizer prodigy --learning_rate 1e-4")["--learning_rate"]
    early = DREAM.replace("dreambooth.py", "dreambooth_lora.py") + "--train_text_encoder --pre_compute_text_embeddings"
    assert list(stops(early)) == ["--pre_compute_text_embeddings"]


def test_mindones_names() -> None:
    found = command(LORA + "--lora_rank 32 --distributed --enable_mindspore_data_sink")
    assert found.adapter.rank == 32
    assert command(LORA + "--lora_rank 8 --rank 8").adapter.rank == 8
    assert list(stops(LORA + "--lora_rank 8 --rank 4")) == ["--lora_rank"]


def test_a_flag_without_its_value_and_a_default_warm_up_that_never_ends() -> None:
    assert stops(LORA + "--resolution")["--resolution"] == "needs a value"
    assert "behind a backslash" in stops(LORA + "\\ \n --rank=4")['" "']
    short = LORA + "--lr_scheduler=cosine --max_train_steps=100"
    assert "100 steps" in stops(short)["--lr_warmup_steps"]
    for flag in ("--lr_warmup_steps=0", "--optim.warmup=0"):
        assert command(f"{short} {flag}").optim.warmup == 0


def test_validation_becomes_samples() -> None:
    found = command(DREAM_XL + "--validation_prompt 'a dog' --validation_epochs 25 --seed 3 --num_validation_images 2")
    sample = found.sample
    assert (sample.prompts, sample.seeds, sample.every_epochs, sample.steps) == (("a dog",), (3, 4), 25, 25)
    assert (sample.guidance, sample.scheduler, found.seed) == (5.0, "DPMSolverMultistepScheduler", 3)
    found = command(TEXT + '--validation_prompts "a dog" "a cat" --center_crop')
    assert (found.sample.prompts, found.sample.seeds, found.sample.every_epochs) == (("a dog", "a cat"), (0,), 5)
    assert fates(translate([TEXT + "--validation_epochs 3"]))["--validation_epochs"] == "harmless"


def test_checkpoints() -> None:
    found = command(LORA + "--checkpointing_steps 100 --checkpoints_total_limit 2 --resume_from_checkpoint latest")
    assert (found.save.every, found.save.keep) == (100, 2)
    assert command(LORA).save.keep == 1000
    assert "--resume_from_checkpoint" in stops(LORA + "--resume_from_checkpoint out/checkpoint-5")


def test_who_is_told_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command(LORA + "--push_to_hub --hub_model_id me/dog --report_to wandb")
    assert (found.hub.push, found.hub.private, found.track.wandb) == ("me/dog", True, "text2image-fine-tune")
    assert command(TEXT + "--report_to wandb --tracker_project_name dogs").track.wandb == "dogs"
    assert command(SDXL + "--report_to wandb").track.wandb == "text2image-fine-tune-sdxl"
    assert command(DREAM_XL + "--report_to wandb").track.wandb == "dreambooth-lora-sd-xl"
    assert command(DREAM_XL + "--report_to tensorboard").track.wandb == ""
    assert command(LORA + "--hub_model_id me/dog").hub.push == ""
    assert list(stops(LORA + "--push_to_hub")) == ["--push_to_hub"]
    assert set(stops(LORA + "--push_to_hub --hub_model_id dog")) == {"--push_to_hub", "--hub_model_id"}
    assert list(stops(LORA + "--report_to comet_ml")) == ["--report_to"]
    assert list(stops(LORA + "--report_to wandb --hub_token hf_x")) == ["--hub_token"]
    monkeypatch.setattr("gesso.importers.diffusers_run.find_spec", lambda name: None)
    assert command(LORA + "--report_to all").track.wandb == ""


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--resume_from_checkpoint out/checkpoint-5", "--resume_from_checkpoint"),
        ("--dataset_name owner/pictures", "--train_data_dir"),
        ("--lr_scheduler piecewise_constant", "--lr_scheduler"),
        ("--mixed_precision fp8", "--mixed_precision"),
        ("--resolution 500", "--resolution"),
        ("--rank many", "--rank"),
        ("--rank", "--rank"),
        ("stray", '"stray"'),
    ],
)
def test_what_cannot_be_done_stops_with_its_key(line: str, key: str) -> None:
    found = stops(LORA + line)
    assert key in found
    assert found[key]


def test_a_misspelt_flag_gets_the_nearest_name_and_a_foreign_one_its_script() -> None:
    found = stops(LORA + "--lerning_rate 3 --use_ema")
    assert found["--lerning_rate"].endswith("did you mean --learning_rate?")
    assert "train_text_to_image.py has" in found["--use_ema"]


def test_no_model_and_no_pictures_are_asked_for() -> None:
    assert set(stops("python train_dreambooth.py")) == {"--pretrained_model_name_or_path", "--instance_data_dir"}
    assert set(stops(DREAM.partition("--instance_prompt")[0])) == {"--instance_prompt"}


def test_a_data_set_of_the_hub() -> None:
    hub = LORA.replace("--train_data_dir=photos", "--dataset_name=YaYaB/onepiece-blip-captions")
    found = command(hub + "--dataset_config_name small").data[0]
    assert (found.path, found.config) == ("hub:YaYaB/onepiece-blip-captions", "small")
    assert "no name of a Hub data set" in stops(hub.replace("YaYaB/", "a/b/"))["--dataset_name"]
    assert "check it" in stops(hub.replace("YaYaB/onepiece-blip-captions", "imagefolder"))["--dataset_name"]
    assert list(stops(LORA + "--dataset_config_name small")) == ["--dataset_config_name"]


def test_a_checkpoint_is_found_as_given_or_in_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint-7").mkdir(parents=True)
    line = LORA + "--output_dir out --resume_from_checkpoint "
    assert translate([line + "other/checkpoint-7"]).checkpoint == "other/checkpoint-7"
    for place in ("checkpoint-5", "elsewhere/checkpoint-5", "out/checkpoint-5"):
        assert translate([line + place]).checkpoint == "out/checkpoint-5"
    assert fates(translate([line + "checkpoint-5"]))["--resume_from_checkpoint"] == "differs"
    assert translate([line + "latest"]).checkpoint == ""
    assert "no out/checkpoint-9" in stops(line + "checkpoint-9")["--resume_from_checkpoint"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--lr_warmup_steps -1", "--lr_warmup_steps"),
        ("--max_train_samples 0", "--max_train_samples"),
        ("--max_train_steps 0", "--max_train_steps"),
        ("--num_train_epochs 0", "--num_train_epochs"),
        ("--learning_rate 0", "--learning_rate"),
        ("--train_batch_size 0", "--train_batch_size"),
        ("--gradient_accumulation_steps -2", "--gradient_accumulation_steps"),
        ("--checkpointing_steps 0", "--checkpointing_steps"),
        ("--checkpoints_total_limit 0", "--checkpoints_total_limit"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers"),
        ("--validation_prompt x --num_validation_images 0", "--num_validation_images"),
        ("--validation_prompt x --validation_epochs 0", "--validation_epochs"),
        ("--noise_offset -1", "--noise_offset"),
        ("--max_grad_norm -1", "--max_grad_norm"),
        ("--snr_gamma -5", "--snr_gamma"),
        ("--seed -1", "--seed"),
        ("--image_interpolation_mode nearest", "--image_interpolation_mode"),
    ],
)
def test_numbers_that_cannot_be(line: str, key: str) -> None:
    assert list(stops(LORA + line)) == [key]


def test_how_a_picture_is_resized() -> None:
    assert command(TEXT).train.interpolation == "lanczos"
    assert command(DREAM).train.interpolation == "bilinear"
    assert command(LORA + "--distributed").train.interpolation == "bilinear"
    assert command(LORA + "--lora_rank 4 --image_interpolation_mode bicubic").train.interpolation == "bicubic"


def test_the_models_own_tokenizer_may_be_named() -> None:
    assert fates(translate([DREAM + "--tokenizer_name owner/base"]))["--tokenizer_name"] == "harmless"
    assert list(stops(DREAM + "--tokenizer_name other/base")) == ["--tokenizer_name"]


def test_keys_of_the_recipe_may_stand_among_the_flags() -> None:
    imported = translate([LORA + "--rank 8 --adapter.rank 6 --train.buckets --optim.weight-decay=0"])
    found = recipe(imported)
    assert (found.adapter.rank, found.train.buckets, found.optim.weight_decay) == (6, True, 0.0)
    assert fates(imported)["--rank"] == "harmless"
    assert "rank = 6  # --adapter.rank" in imported.text
    found = command(LORA + "--num_train_epochs 7 --train.steps 3")
    assert (found.train.steps, found.train.epochs) == (3, None)
    assert "did you mean --train.steps" in stops(LORA + "--train.stepps 4")["--train.stepps"]
    assert "whole number" in stops(LORA + "--train.batch many")["--train.batch"]


def test_a_local_data_set_is_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "set", 2)
    line = LORA.replace("--train_data_dir=photos", "--dataset_name=set")
    assert command(line).data[0].path == "set"
    found = command(LORA + "--caption_column words --image_column picture --max_train_samples 5").data[0]
    assert (found.caption_column, found.image_column, found.max_samples) == ("words", "picture", 5)
    both = LORA + "--dataset_name imagefolder"
    assert fates(translate([both]))["--dataset_name"] == "harmless"


def test_every_line_says_where_it_is_from_and_tokens_are_never_shown() -> None:
    imported = translate([LORA + "--rank 8 --hub_token hf_secret"])
    for line in imported.text.splitlines():
        assert not line or line.startswith(("#", "[")) or "  # " in line
    assert "rank = 8  # --rank" in imported.text
    assert "hf_secret" not in json.dumps(imported.as_json())


def test_a_value_cannot_smuggle_a_line_into_the_recipe() -> None:
    words = [*LORA.split(), "--output_dir", 'x"\n[train]\nsteps = 1 #']
    found = recipe(translate(words))
    assert found.out == 'x"\n[train]\nsteps = 1 #'
    assert found.train.epochs == 100


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("python train_text_to_image.py --output_dir $OUT", "$OUT"),
        ("python train_text_to_image.py --output_dir $(rm -rf x)", "only a shell"),
        ("python train_text_to_image.py --output_dir `id`", "only a shell"),
        ("python train_text_to_image.py > log.txt", "only a shell"),
        ("python train_text_to_image.py --x 'open", "without its end"),
        ('python train_text_to_image.py --x "open', "without its end"),
        ("python train_text_to_imag.py --x 1", "did you mean train_text_to_image.py"),
        ("python flux_train_network.py --x 1", "does not have"),
        ("echo hello world", "no command of a training script"),
        ("python train_dreambooth.py\npython train_text_to_image.py", "several"),
        ("accelerate launch --num_processes none train_dreambooth.py", "whole number"),
    ],
)
def test_what_is_no_command_is_refused_in_one_sentence(text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(what)):
        translate([text])


def test_a_shell_file_with_other_commands() -> None:
    Path("train.sh").write_text(
        "#!/bin/bash\r\ncd somewhere && pip install -r requirements.txt\r\n"
        "CUDA_VISIBLE_DEVICES=0 nohup python ./examples/train_text_to_image_lora.py \\\r\n"
        "  --pretrained_model_name_or_path=a/b --train_data_dir=p#1 &\r\n",
        encoding="utf-8",
    )
    assert recipe(translate(["train.sh"])).data[0].path == "p#1"


def test_launchers_that_gesso_does_not_know_stop() -> None:
    line = LORA.replace("python", "accelerate launch --use_deepspeed --zero_stage 2")
    assert "--use_deepspeed" in stops(line)


def test_the_file_of_a_launcher_counts() -> None:
    line = LORA.replace("python", "accelerate launch --config_file two.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        translate([line])
    Path("two.yaml").write_text(
        "distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_processes: 2\n", encoding="utf-8"
    )
    found = command(line + "--train_batch_size=3")
    assert (found.train.precision, found.train.batch) == ("bf16", 6)
    assert command(line.replace("--config", "--mixed_precision=no --config")).train.precision == "fp32"
    Path("two.yaml").write_text("distributed_type: DEEPSPEED\nmixed_precision: no\n", encoding="utf-8")
    assert list(stops(line)) == ["--use_deepspeed"]


def test_the_verb_writes_once_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    words = LORA.split()
    assert cli.main(["import", *words, "--dry-run"]) == 0
    assert "[model]" in capsys.readouterr().out
    assert not Path("recipe.toml").exists()
    assert cli.main(["import", *words, "--rank", "8", "--out", "dog.toml"]) == 0
    assert "dog.toml is written" in capsys.readouterr().out
    assert cli.main(["import", *words, "--out=dog.toml"]) == Exit.RECIPE
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["import", *words, "--mixed_precision=fp8", "--json"]) == Exit.RECIPE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["stopped"], answer["recipe"], answer["written"]) == (True, None, None)
    assert not Path("recipe.toml").exists()
    assert cli.main(["import"]) == Exit.RECIPE
    assert cli.main(["import", "none.toml"]) == Exit.RECIPE
    assert cli.main(["import", "recipe.xyz"]) == Exit.RECIPE


VALUES: dict[str, list[Any]] = {
    "switch": [True, "false"],
    "whole": [0, 1, 2, 7, 64, -3, "x", 1000],
    "number": [0, 0.1, 1, 1e-5, -1, "nan", "1e999"],
    "text": ["", "a", "latest", "cosine", "fp16", "none", "later", "epsilon", "prodigy", "/"],
    "texts": [["a dog"], ["a", "a"], []],
    "any": ["a", True, "1"],
}


@given(data=st.data(), name=st.sampled_from(sorted(diffusers_flags.SCRIPTS)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flags_lead_to_a_recipe_that_loads_or_to_named_stops(data: st.DataObject, name: str) -> None:
    table = diffusers_flags.rows(name)
    flags = data.draw(st.lists(st.sampled_from(sorted(table)), unique=True, max_size=12))
    words = ["--pretrained_model_name_or_path", "a/b", "--instance_prompt", "p"][: 4 if "dreambooth" in name else 2]
    words += ["--train_data_dir" if "train_data_dir" in table else "--instance_data_dir", "photos"]
    for flag in flags:
        value = data.draw(st.sampled_from(VALUES[table[flag].kind]))
        spoken = value if isinstance(value, list) else [] if value is True else [str(value)]
        words += [f"--{flag}", *spoken]
    imported = translate(["python", name, *words])
    assert {entry.key for entry in imported.entries} >= {word for word in words if word.startswith("--")}
    if imported.stopped:
        assert imported.text == ""
        assert all(entry.note for entry in imported.stopped)
    else:
        recipe(imported)


def test_a_terminal_is_safe_from_what_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", *LORA.split(), "--output_dir", "a\x1b[2Jb", "--dry-run"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert cli.main(["import", *LORA.split(), "--output_dir", "a\udcff"]) == Exit.RECIPE
    assert "not valid text" in capsys.readouterr().err


def test_shell_words() -> None:
    assert shell.commands("X=1; a 'b $X' \"c ${X}\" d\\ e #f\ng") == [["a", "b $X", "c 1", "d e"], ["g"]]
    assert shell.commands("a \\\n  b ^\n c") == [["a", "b", "c"]]
    assert shell.commands("X=1; a ${X:-2} ${Y:-3} ${Z-}4 ${X:?unset}") == [["a", "1", "3", "4", "1"]]
    with pytest.raises(RecipeError, match="only a shell"):
        shell.commands("X=1; a ${X%.*}")
