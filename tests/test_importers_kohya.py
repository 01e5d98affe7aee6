"""Commands, configuration files and data set files of kohya's sd-scripts as recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_parts import command, fates, folder, recipe, stops

from gesso.engines.engine import Adapter, Rule
from gesso.engines.layers import choose
from gesso.errors import RecipeError
from gesso.importers import kohya_flags, translate
from gesso.schema import Recipe

BASE = "--pretrained_model_name_or_path owner/base --train_data_dir train --resolution 512 --caption_extension .txt "
LORA = f"accelerate launch train_network.py {BASE} --network_module networks.lora "
XL = LORA.replace("train_network.py", "sdxl_train_network.py")
FULL = f"python train_db.py {BASE}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "train" / "10_sks dog", 3)
    folder(tmp_path / "train" / "4_sks dog, close", 2)
    (tmp_path / "train" / "notes").mkdir()


def adapter(found: Recipe) -> Adapter:
    parts = {
        part: found.adapter.targets if part == "unet" else found.adapter.text_targets for part in found.model.train
    }
    rules = tuple(Rule(match=each.match, rank=each.rank, alpha=each.alpha, skip=each.skip) for each in found.rules)
    alpha = found.adapter.alpha or found.adapter.rank
    return Adapter(kind="lora", rank=found.adapter.rank, alpha=alpha, targets=parts, rules=rules)


def test_folders_by_name_become_data() -> None:
    found = command(LORA)
    # "folder", or gesso's own reader would count the repeats in the name once more.
    assert [(each.path, each.prompt, each.repeats, each.format) for each in found.data] == [
        ("train/10_sks dog", "sks dog", 10, "folder"),
        ("train/4_sks dog, close", "sks dog, close", 4, "folder"),
    ]
    assert found.train.steps == 1600
    assert (found.train.batch, found.train.precision, found.optim.lr, found.train.crop) == (1, "fp32", 2e-6, "center")
    assert (found.save.every, found.adapter.rank, found.adapter.alpha) == (0, 4, 1.0)


def test_folders_that_are_not_there_or_not_named_so_stop(tmp_path: Path) -> None:
    assert "--train_data_dir" in stops(LORA.replace("_dir train", "_dir none"))
    assert "10_sks dog" in stops(LORA.replace("_dir train", "_dir train/notes"))["--train_data_dir"]
    assert "train_data_dir" in stops(LORA.replace("--train_data_dir train", ""))


def test_both_text_encoders_learn_unless_told_otherwise() -> None:
    assert command(LORA).model.train == ("unet", "text_encoder")
    assert command(XL).model.train == ("unet", "text_encoder", "text_encoder_2")
    assert command(XL + "--network_train_unet_only").model.train == ("unet",)
    assert command(XL + "--network_train_text_encoder_only").model.train == ("text_encoder", "text_encoder_2")
    found = command(XL + "--unet_lr 1e-4 --text_encoder_lr 5e-5 0 --learning_rate 9")
    assert (found.model.train, found.optim.lr, found.optim.text_encoder_lr) == (("unet", "text_encoder"), 1e-4, 5e-5)
    found = command(XL + "--learning_rate 1e-4")
    assert (found.optim.lr, found.optim.text_encoder_lr, found.optim.text_encoder_2_lr) == (1e-4, 1e-4, 1e-4)
    assert command(LORA + "--text_encoder_lr 0").model.train == ("unet",)
    assert command(FULL).model.train == ("unet", "text_encoder")
    assert command(FULL).adapter.kind == "none"
    assert command(FULL + "--stop_text_encoder_training=-1").model.train == ("unet",)
    assert "--stop_text_encoder_training" in stops(FULL + "--stop_text_encoder_training 100")


LAYERS = {
    "unet": [
        "conv_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.time_emb_proj",
        "down_blocks.0.resnets.0.conv2",
        "down_blocks.1.resnets.0.conv_shortcut",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "mid_block.attentions.0.proj_in",
        "mid_block.attentions.0.proj_out",
        *(f"mid_block.attentions.0.transformer_blocks.0.attn1.{each}" for each in ("to_q", "to_k", "to_v", "to_out.0")),
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "conv_out",
    ],
    "text_encoder": [
        *(f"text_model.encoder.layers.0.self_attn.{each}" for each in ("q_proj", "k_proj", "v_proj", "out_proj")),
        "text_model.encoder.layers.0.mlp.fc1",
        "text_model.encoder.layers.0.mlp.fc2",
    ],
}


def test_a_lora_sits_where_kohyas_does() -> None:
    chosen = choose(adapter(command(LORA + "--network_dim 32 --network_alpha 16")), LAYERS)
    assert len(chosen["unet"]) == 8
    assert set(chosen["text_encoder"]) == set(LAYERS["text_encoder"])
    assert {(each.rank, each.alpha) for each in chosen["unet"].values()} == {(32, 16.0)}


def test_convolutions_get_their_own_rank_and_alpha() -> None:
    line = LORA + "--network_dim 32 --network_alpha 16 --network_args conv_dim=8 conv_alpha=4"
    chosen = choose(adapter(command(line)), LAYERS)["unet"]
    assert set(chosen) == set(LAYERS["unet"]) - {"conv_in", "conv_out"}
    large = {name for name, each in chosen.items() if (each.rank, each.alpha) == (8, 4.0)}
    assert large == {name for name in chosen if name.rpartition(".")[2] in ("conv1", "conv2", "conv")}
    assert chosen["down_blocks.1.resnets.0.conv_shortcut"].rank == 32


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [("algo=locon", "lora"), ("algo=loha", "loha"), ("algo=lokr factor=4", "lokr"), ("algo=lora dora_wd=True", "dora")],
)
def test_lycoris(arguments: str, kind: str) -> None:
    line = LORA.replace("networks.lora", "lycoris.kohya") + f"--network_args preset=attn-mlp {arguments}"
    found = command(line)
    assert found.adapter.kind == kind
    assert found.adapter.factor == (4 if kind == "lokr" else -1)


@pytest.mark.parametrize(
    "arguments",
    ["algo=boft", "preset=full-lin", "rank_dropout=0.1", "block_dims=1,2", "conv_dim=many", "algo=loha dora_wd=true"],
)
def test_network_arguments_that_gesso_does_not_have_stop(arguments: str) -> None:
    line = LORA.replace("networks.lora", "lycoris.kohya") + f"--network_args {arguments}"
    assert list(stops(line)) == ["--network_args"]
    assert "--network_module" in stops(LORA.replace("networks.lora", "networks.oft"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"name": "adamw", "weight_decay": 0.01}),
        ("--optimizer_type AdamW8bit", {"name": "adamw_8bit"}),
        ("--use_8bit_adam", {"name": "adamw_8bit"}),
        ("--use_8bit_adam --optimizer_type AdamW8bit", {"name": "adamw_8bit"}),
        ("--optimizer_type PagedAdamW8bit --optimizer_args weight_decay=0.1", {"weight_decay": 0.1}),
        ("--optimizer_type lion", {"name": "lion", "betas": (0.9, 0.99), "weight_decay": 0.0}),
        ("--optimizer_type AdamW --optimizer_args betas=0.9,0.95 eps=1e-6", {"betas": (0.9, 0.95), "eps": 1e-6}),
        (
            "--learning_rate 1 --optimizer_type Prodigy --optimizer_args use_bias_correction=True d_coef=1.0",
            {"name": "prodigy", "bias_correction": True, "safeguard_warmup": False, "weight_decay": 0.0, "lr": 1},
        ),
        (
            "--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False",
            {"name": "adafactor", "weight_decay": 0.0},
        ),
        ("--optimizer_type AdamWScheduleFree", {"name": "adamw_schedule_free"}),
    ],
)  # fmt: skip
def test_optimisers_with_their_libraries_defaults(line: str, expected: dict[str, Any]) -> None:
    found = command(LORA + line).optim
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        "--optimizer_type DAdaptAdam",
        "--optimizer_type adafactor",
        "--optimizer_args d_coef=2",
        "--optimizer_args weight_decay=x",
        "--optimizer_args betas=1",
        "--optimizer_type AdamW --use_lion_optimizer",
        "--optimizer_args nonsense=1",
    ],
)
def test_optimisers_that_gesso_does_not_have_stop(line: str) -> None:
    assert stops(LORA + line)


def test_the_objective() -> None:
    line = "--min_snr_gamma 5 --noise_offset 0.05 --noise_offset_random_strength --ip_noise_gamma 0.1 "
    line += "--loss_type smooth_l1 --huber_schedule exponential --huber_c 0.2 "
    line += "--multires_noise_iterations 8 --multires_noise_discount 0.4"
    found = command(LORA + line + " --min_timestep 100 --max_timestep 900").objective
    assert (found.weighting, found.gamma, found.noise_offset, found.noise_offset_random) == ("min_snr", 5, 0.05, True)
    assert (found.input_perturbation, found.loss, found.huber_schedule, found.huber_c) == (
        0.1,
        "smooth_l1",
        "exponential",
        0.2,
    )
    assert (found.pyramid_levels, found.pyramid_noise) == (8, 0.4)
    assert (found.times, found.times_begin, found.times_end) == ("only", 100, 900)
    found = command(LORA + "--v_parameterization --zero_terminal_snr --debiased_estimation_loss").objective
    assert (found.prediction, found.zero_snr, found.weighting) == ("v_prediction", True, "debiased")
    assert fates(translate([LORA + "--multires_noise_discount 0.1"]))["--multires_noise_discount"] == "harmless"
    assert "--loss_type" in stops(LORA + "--loss_type l1")
    assert "--debiased_estimation_loss" in stops(LORA + "--debiased_estimation_loss --min_snr_gamma 5")


def test_warm_up_may_be_a_share_and_epochs_are_counted() -> None:
    found = command(LORA + "--lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 3 --lr_warmup_steps 0.1")
    assert (found.optim.warmup, found.optim.cycles) == (160, 3)
    found = command(LORA + "--lr_scheduler cosine --lr_warmup_steps 0.1 --max_train_epochs 2 --train_batch_size 2")
    assert (found.train.epochs, found.optim.warmup) == (2, int(0.1 * 2 * 38 / 2))
    found = command(LORA + "--lr_scheduler constant --lr_warmup_steps 100")
    assert found.optim.warmup == 0


def test_class_pictures_take_half_of_the_batch(tmp_path: Path) -> None:
    folder(tmp_path / "reg" / "1_dog", 5)
    line = LORA + "--reg_data_dir reg --prior_loss_weight 0.5 --lr_scheduler linear --lr_warmup_steps 100 "
    found = command(line + "--train_batch_size 4 --gradient_accumulation_steps 2 --max_train_steps 1000")
    assert (found.prior.prompt, found.prior.path, found.prior.pictures, found.prior.weight) == (
        "dog",
        "reg/1_dog",
        5,
        0.5,
    )
    assert (found.train.batch, found.train.micro_batch, found.train.steps, found.optim.warmup) == (4, 2, 1000, 100)
    found = command(line + "--max_train_steps 1001 --save_every_n_steps 100")
    assert (found.train.batch, found.train.steps, found.optim.warmup, found.save.every) == (1, 501, 50, 50)
    assert found.train.micro_batch == 0


def test_checkpoints_and_names() -> None:
    found = command(
        LORA + "--output_dir a --output_name b --save_every_n_epochs 2 --save_last_n_epochs 3 --max_train_epochs 9"
    )
    assert (found.out, found.save.every_epochs, found.save.keep) == ("a/b", 2, 3)
    found = command(LORA + "--save_every_n_steps 100 --save_last_n_steps 300")
    assert (found.save.every, found.save.keep) == (100, 4)


def test_sample_prompts_with_their_options() -> None:
    Path("prompts.txt").write_text(
        "# drawn now and then\na dog --n blurry --w 512 --h 768 --d 1 --l 6 --s 28\na cat --n blurry --d 2\n",
        encoding="utf-8",
    )
    line = LORA + "--sample_prompts prompts.txt --sample_every_n_epochs 1 --sample_sampler euler_a"
    found = command(line).sample
    assert (found.prompts, found.negative, found.width, found.height) == (("a dog", "a cat"), "blurry", 512, 768)
    assert (found.seeds, found.guidance, found.steps, found.every_epochs) == ((1, 2), 6.0, 28, 1)
    assert found.scheduler == "EulerAncestralDiscreteScheduler"
    Path("prompts.txt").write_text("a dog --n blurry\na cat --n sharp\n", encoding="utf-8")
    assert "all prompts alike" in stops(line)["--sample_prompts"]
    Path("prompts.txt").write_text("a dog --cn file.png\n", encoding="utf-8")
    assert "--sample_prompts" in stops(line)


@pytest.mark.parametrize(
    "line",
    [
        "--keep_tokens_separator |||",
        "--clip_skip 2",
        "--max_token_length 100",
        "--caption_extension .cap",
        "--resolution 512,768",
        "--conditioning_data_dir masks --masked_loss",
        "--network_weights a.safetensors",
        "--resume_from_huggingface",
        "--resume state",
        "--deepspeed",
        "--lr_scheduler adafactor",
    ],
)
def test_what_cannot_be_done_stops_with_its_key(line: str) -> None:
    found = stops(LORA + line)
    assert line.split()[0] in found


def test_masks_tags_long_captions_and_resizing() -> None:
    line = LORA + "--alpha_mask --masked_loss --caption_tag_dropout_rate 0.1 --keep_tokens 1 --max_token_length 225 "
    found = command(line + "--resize_interpolation cubic")
    assert {(each.masks, each.unmasked_weight) for each in found.data} == {(True, 0.0)}
    assert (found.data[0].tag_dropout, found.data[0].keep_tokens, found.data[0].shuffle) == (0.1, 1, False)
    assert (found.train.caption_chunks, found.train.interpolation) == (3, "bicubic")
    assert not command(LORA + "--masked_loss").data[0].masks
    assert fates(translate([LORA + "--resize_interpolation area"]))["--resize_interpolation"] == "differs"


def test_a_model_in_one_file_needs_a_lender() -> None:
    imported = translate([LORA + "--pretrained_model_name_or_path sdxl.safetensors"])
    said = {entry.key: (entry.fate, entry.to, entry.note) for entry in imported.entries}
    fate, to, note = said["--pretrained_model_name_or_path"]
    assert (fate, to) == ("differs", {"model.base": "sdxl.safetensors"})
    assert "model.like" in note
    assert 'base = "sdxl.safetensors"' in imported.text


def test_buckets_are_those_of_the_source() -> None:
    line = LORA + "--enable_bucket --min_bucket_reso 300 --max_bucket_reso 1000 --bucket_reso_steps 32"
    train = command(line).train
    assert (train.buckets, train.bucket_enlarge) == (True, True)
    assert (train.bucket_min, train.bucket_max, train.bucket_step) == (288, 1024, 32)
    train = command(LORA + "--enable_bucket").train  # the script's defaults, whatever the resolution
    assert (train.bucket_min, train.bucket_max, train.bucket_step) == (256, 1024, 64)
    train = command(LORA + "--enable_bucket --bucket_no_upscale --min_bucket_reso 256").train
    assert (train.buckets, train.bucket_enlarge, train.bucket_min) == (True, False, None)
    imported = translate([LORA + "--min_bucket_reso 256 --clip_skip 1 --max_token_length 75"])
    assert fates(imported)["--min_bucket_reso"] == "harmless"
    assert not recipe(imported).train.buckets


def test_how_captions_are_changed() -> None:
    line = LORA + "--shuffle_caption --keep_tokens 2 --caption_separator ';' --caption_prefix sks --caption_suffix end"
    first, second = command(line + " --enable_wildcard").data
    assert (first.shuffle, first.keep_tokens, first.separator, first.prefix, first.suffix) == (
        True,
        2,
        ";",
        "sks ",
        " end",
    )
    assert second.wildcards
    assert fates(translate([LORA + "--keep_tokens 2"]))["--keep_tokens"] == "harmless"


def test_a_word() -> None:
    line = f"python train_textual_inversion.py {BASE} --token_string '<dog>' --init_word dog --num_vectors_per_token 2"
    found = command(line + " --learning_rate 1e-3")
    assert (found.adapter.kind, found.tokens[0].name, found.tokens[0].init, found.tokens[0].vectors) == (
        "ti",
        "<dog>",
        "dog",
        2,
    )
    assert found.optim.lr == 1e-3
    assert "--network_dim" in stops(line + " --network_dim 4")


SET = """
[general]
enable_bucket = true
caption_extension = ".txt"
[[datasets]]
resolution = [512, 512]
batch_size = 4
num_repeats = 2
  [[datasets.subsets]]
  image_dir = "a"
  class_tokens = "sks dog"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "b"
  class_tokens = "sks cat"
"""
CONFIG = """
[model]
pretrained_model_name_or_path = "owner/base"
[network]
network_module = "networks.lora"
[data]
dataset_config = "set.toml"
[train]
learning_rate = 1e-4
train_batch_size = 9
"""


def test_a_configuration_file_with_its_data_set_file() -> None:
    Path("set.toml").write_text(SET, encoding="utf-8")
    Path("config.toml").write_text(CONFIG, encoding="utf-8")
    imported = translate(["config.toml"])
    found = recipe(imported)
    assert [(each.path, each.prompt, each.repeats) for each in found.data] == [
        ("a", "sks dog", 10),
        ("b", "sks cat", 2),
    ]
    assert (found.train.batch, found.train.resolution, found.optim.lr) == (4, 512, 1e-4)
    assert (fates(imported)["general.enable_bucket"], found.train.buckets) == ("mapped", True)
    assert "# datasets.0.subsets.0.num_repeats" in imported.text
    found = recipe(translate(["python", "train_network.py", "--config_file", "config", "--learning_rate", "2e-4"]))
    assert found.optim.lr == 2e-4
    found = recipe(translate(["config.toml"], "sdxl_train_network.py"))
    assert "text_encoder_2" in found.model.train


def test_subsets_must_agree_on_what_gesso_has_once() -> None:
    Path("set.toml").write_text(SET + "  flip_aug = true\n", encoding="utf-8")
    Path("config.toml").write_text(CONFIG, encoding="utf-8")
    assert list(stops("config.toml")) == ["datasets.0.subsets.1.flip_aug"]


def test_misspelt_keys_of_files_get_the_nearest_name() -> None:
    Path("set.toml").write_text(SET + "  num_repeat = 3\n", encoding="utf-8")
    Path("config.toml").write_text(CONFIG + "lerning_rate = 3\n", encoding="utf-8")
    found = stops("config.toml")
    assert found["lerning_rate"].endswith("did you mean learning_rate?")
    assert found["datasets.0.subsets.1.num_repeat"].endswith("did you mean datasets.subsets.num_repeats?")


def test_files_that_do_not_tell_enough_are_refused() -> None:
    Path("set.toml").write_text(SET, encoding="utf-8")
    with pytest.raises(RecipeError, match="data set file"):
        translate(["set.toml"])
    Path("other.toml").write_text("a = 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="no key of kohya"):
        translate(["other.toml"])
    Path("full.toml").write_text('pretrained_model_name_or_path = "a/b"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="which script"):
        translate(["full.toml"])
    with pytest.raises(RecipeError, match="there is no script"):
        translate(["full.toml"], "x.py")
    with pytest.raises(RecipeError, match="no such file"):
        translate(["python", "train_network.py", "--config_file", "none"])


VALUES: dict[str, list[Any]] = {
    "switch": [True, False, "maybe"],
    "whole": [0, 1, 2, 8, -3, "x", 1.5],
    "number": [0, 0.1, 1, 1e-5, -1, "nan"],
    "numbers": [[1e-4], [0, 0], [1, 2, 3]],
    "text": ["", "a", "cosine", "fp16", "none", "huber", "AdamW", "lion", "networks.lora", 3],
    "texts": [["conv_dim=4"], ["algo=lora"], ["=", "a"], ["weight_decay=0.1"], []],
    "any": ["a", True, 1, [], ["a"], {"a": 1}, 512],
}


@given(data=st.data(), name=st.sampled_from(sorted(kohya_flags.SCRIPTS)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_keys_lead_to_a_recipe_that_loads_or_to_named_stops(data: st.DataObject, name: str) -> None:
    from gesso.importers.kohya import _translate

    table = kohya_flags.rows(kohya_flags.SCRIPTS[name])
    drawn = data.draw(st.lists(st.sampled_from(sorted(set(table) - {"config_file", "dataset_config"})), max_size=10))
    given_keys: dict[str, Any] = {
        "pretrained_model_name_or_path": "a/b",
        "train_data_dir": "train",
        "resolution": 512,
        "caption_extension": ".txt",
    }
    given_keys |= {key: data.draw(st.sampled_from(VALUES[table[key].kind])) for key in drawn}
    imported = _translate(name, given_keys, source="config.toml")
    assert {entry.key for entry in imported.entries} >= set(given_keys)
    if imported.stopped:
        assert all(entry.note for entry in imported.stopped)
    else:
        recipe(imported)
