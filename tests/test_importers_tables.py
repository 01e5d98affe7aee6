"""Every key of every source has one row, and docs/import.md tells all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gesso.importers import (
    ai_toolkit_keys,
    diffusers_flags,
    kohya_flags,
    mindone_sd_flags,
    onetrainer_keys,
    scripts_page,
    summary,
)
from gesso.importers.__main__ import page
from gesso.importers.rows import Row
from gesso.recipe.keys import keys, tables

# Which script has which flag, from the scripts' own help. Columns: T2I T2I-L XL XL-L DB DB-L DB-XL.
MATRIX = """
pretrained_model_name_or_path xxxxxxx
revision xxxxxxx
variant xxxxxxx
pretrained_vae_model_name_or_path ..xx..x
tokenizer_name ....xx.
cache_dir xxxx..x
dataset_name xxxx..x
dataset_config_name xxxx..x
train_data_dir xxxx...
image_column xxxx..x
caption_column xxxx..x
max_train_samples xxxx...
instance_data_dir ....xxx
instance_prompt ....xxx
class_data_dir ....xxx
class_prompt ....xxx
with_prior_preservation ....xxx
prior_loss_weight ....xxx
num_class_images ....xxx
sample_batch_size ....xxx
prior_generation_precision ....xxx
repeats ......x
tokenizer_max_length ....xx.
text_encoder_use_attention_mask ....xx.
pre_compute_text_embeddings ....xx.
class_labels_conditioning ....xx.
validation_images ....xx.
proportion_empty_prompts ..x....
resolution xxxxxxx
center_crop xxxxxxx
random_flip xxxx..x
image_interpolation_mode xxxx.xx
train_batch_size xxxxxxx
num_train_epochs xxxxxxx
max_train_steps xxxxxxx
gradient_accumulation_steps xxxxxxx
gradient_checkpointing xxxxxxx
learning_rate xxxxxxx
text_encoder_lr ......x
scale_lr xxxxxxx
lr_scheduler xxxxxxx
lr_warmup_steps xxxxxxx
lr_num_cycles ....xxx
lr_power ....xxx
snr_gamma xxxxx.x
noise_offset xxxx...
offset_noise ....x..
input_perturbation x......
prediction_type xxxx...
dream_training x......
dream_detail_preservation x......
timestep_bias_strategy ..x....
timestep_bias_multiplier ..x....
timestep_bias_begin ..x....
timestep_bias_end ..x....
timestep_bias_portion ..x....
do_edm_style_training ......x
optimizer ......x
adam_beta1 xxxxxxx
adam_beta2 xxxxxxx
adam_epsilon xxxxxxx
adam_weight_decay xxxxxxx
adam_weight_decay_text_encoder ......x
prodigy_beta3 ......x
prodigy_decouple ......x
prodigy_use_bias_correction ......x
prodigy_safeguard_warmup ......x
use_8bit_adam xxxxxxx
max_grad_norm xxxxxxx
set_grads_to_none ....x..
use_ema x.x....
offload_ema x......
foreach_ema x......
non_ema_revision x......
train_text_encoder ...xxxx
rank .x.x.xx
lora_rank .x.x.xx
lora_dropout .....xx
use_dora ......x
debug_loss ...x...
output_dir xxxxxxx
seed xxxxxxx
mixed_precision xxxxxxx
allow_tf32 xxxxxxx
enable_xformers_memory_efficient_attention xxxxxxx
enable_npu_flash_attention ..xx...
dataloader_num_workers xxxxxxx
local_rank xxxxxxx
logging_dir xxxxxxx
report_to xxxxxxx
tracker_project_name x......
checkpointing_steps xxxxxxx
checkpoints_total_limit xxxxxxx
resume_from_checkpoint xxxxxxx
validation_prompt .xxxxxx
validation_prompts x......
num_validation_images .xxxxxx
validation_epochs xxxx.xx
validation_steps ....x..
validation_scheduler ....x..
skip_save_text_encoder ....x..
output_kohya_format ......x
push_to_hub xxxxxxx
hub_token xxxxxxx
hub_model_id xxxxxxx
distributed xxxxxxx
enable_mindspore_data_sink xxxxxxx
"""
SCRIPTS = (
    "train_text_to_image.py",
    "train_text_to_image_lora.py",
    "train_text_to_image_sdxl.py",
    "train_text_to_image_lora_sdxl.py",
    "train_dreambooth.py",
    "train_dreambooth_lora.py",
    "train_dreambooth_lora_sdxl.py",
)
DEFAULTS = {
    "resolution": (512, 512, 1024, 1024, 512, 512, 1024),
    "train_batch_size": (16, 16, 16, 16, 4, 4, 4),
    "num_train_epochs": (100, 100, 100, 100, 1, 1, 1),
    "learning_rate": (1e-4, 1e-4, 1e-4, 1e-4, 5e-6, 5e-4, 1e-4),
    "adam_weight_decay": (1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-4),
    "lr_warmup_steps": (500,) * 7,
    "checkpointing_steps": (500,) * 7,
    "lr_scheduler": ("constant",) * 7,
    "max_grad_norm": (1.0,) * 7,
    "rank": (None, 4, None, 4, None, 4, 4),
    "validation_epochs": (5, 1, 1, 1, None, 50, 50),
}
KOHYA = """
v2 v_parameterization pretrained_model_name_or_path tokenizer_cache_dir optimizer_type use_8bit_adam
use_lion_optimizer learning_rate max_grad_norm optimizer_args lr_scheduler_type lr_scheduler_args lr_scheduler
lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power fused_backward_pass lr_scheduler_timescale
lr_scheduler_min_lr_ratio output_dir output_name huggingface_repo_id huggingface_repo_type
huggingface_path_in_repo huggingface_token huggingface_repo_visibility save_state_to_huggingface
resume_from_huggingface async_upload save_precision save_every_n_epochs save_every_n_steps save_n_epoch_ratio
save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_state
save_state_on_train_end resume train_batch_size max_token_length mem_eff_attn torch_compile dynamo_backend xformers
sdpa vae max_train_steps max_train_epochs max_data_loader_n_workers persistent_data_loader_workers seed
gradient_checkpointing gradient_accumulation_steps mixed_precision full_fp16 full_bf16 fp8_base ddp_timeout
ddp_gradient_as_bucket_view ddp_static_graph clip_skip logging_dir log_with log_prefix log_tracker_name
wandb_run_name log_tracker_config wandb_api_key log_config noise_offset noise_offset_random_strength
multires_noise_iterations ip_noise_gamma ip_noise_gamma_random_strength multires_noise_discount
adaptive_noise_scale zero_terminal_snr min_timestep max_timestep loss_type huber_schedule huber_c huber_scale lowram
highvram sample_every_n_steps sample_at_first sample_every_n_epochs sample_prompts sample_sampler config_file
output_config prior_loss_weight conditioning_data_dir masked_loss cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk disable_mmap_load_safetensors train_data_dir cache_info shuffle_caption
caption_separator caption_extension caption_extention keep_tokens keep_tokens_separator secondary_separator
enable_wildcard caption_prefix caption_suffix color_aug flip_aug face_crop_aug_range random_crop debug_dataset
resolution cache_latents vae_batch_size cache_latents_to_disk skip_cache_check enable_bucket min_bucket_reso
max_bucket_reso bucket_reso_steps bucket_no_upscale resize_interpolation token_warmup_min token_warmup_step alpha_mask
dataset_class caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate reg_data_dir in_json
dataset_repeats save_model_as use_safetensors min_snr_gamma scale_v_pred_loss_like_noise_pred v_pred_like_loss
debiased_estimation_loss weighted_captions dataset_config console_log_level console_log_file console_log_simple
deepspeed zero_stage offload_optimizer_device offload_optimizer_nvme_path offload_param_device
offload_param_nvme_path zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients
cpu_offload_checkpointing no_metadata unet_lr text_encoder_lr fp8_base_unet network_weights network_module
network_dim network_alpha network_dropout network_args network_train_unet_only network_train_text_encoder_only
training_comment dim_from_weights scale_weight_norms base_weights base_weights_multiplier no_half_vae
skip_until_initial_step initial_epoch initial_step validation_seed validation_split validate_every_n_steps
validate_every_n_epochs max_validation_steps learning_rate_te1 learning_rate_te2 diffusers_xformers
train_text_encoder block_lr fused_optimizer_groups learning_rate_te no_token_padding stop_text_encoder_training
weights num_vectors_per_token token_string init_word use_object_template use_style_template
"""
SUBSET = """
num_repeats shuffle_caption caption_separator keep_tokens keep_tokens_separator secondary_separator enable_wildcard
color_aug flip_aug face_crop_aug_range random_crop caption_prefix caption_suffix caption_dropout_rate
caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min token_warmup_step custom_attributes
validation_seed validation_split resize_interpolation is_reg class_tokens caption_extension cache_info alpha_mask
metadata_file conditioning_data_dir image_dir resolution network_multiplier batch_size enable_bucket min_bucket_reso
max_bucket_reso bucket_reso_steps bucket_no_upscale
"""
SUMMARY = """
pretrained_model_name_or_path revision dataset_name dataset_config_name train_data_dir dataset_from_disk
dataset_disk_path image_column caption_column validation_prompts_dir validation_negative_prompts_dir
num_validation_images validation_epochs max_train_samples output_dir cache_dir seed resolution center_crop random_flip
train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing learning_rate
scale_lr lr_scheduler lr_warmup_steps use_8bit_adam allow_tf32 dataloader_num_workers adam_beta1 adam_beta2
adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir mixed_precision report_to
local_rank checkpointing_steps checkpoints_total_limit resume_from_checkpoint
enable_xformers_memory_efficient_attention
"""
SUMMARY_FULL = "use_ema non_ema_revision"
DATASET = "save_to_disk dataset_name user_name"
DREAMBOOTH = """
mode use_parallel use_lora lora_fp16 lora_rank train_config pretrained_model_path pretrained_model_file output_path
instance_data_dir instance_prompt class_data_dir class_prompt with_prior_preservation prior_loss_weight
num_class_images train_data_repeats sampling_steps sample_batch_size random_crop image_size train_text_encoder
train_batch_size callback_size ckpt_save_interval gradient_accumulation_steps start_learning_rate end_learning_rate
warmup_steps decay_steps optim betas init_loss_scale loss_scale_factor scale_window use_ema clip_grad max_grad_norm
seed epochs log_level
"""
DREAMBOOTH_LATER = """
model_config jit_level max_device_memory lora_ft_unet lora_ft_text_encoder lora_scale weight_decay scale
dataset_sink_mode unet_initialize_random
"""
DRAWING = """
data_path negative_data_path version prompt negative_prompt output_path skip_grid skip_save sampling_steps ddim_eta
fixed_code n_iter n_samples H W ddim dpm_solver dpm_solver_pp uni_pc n_rows scale from-file config use_lora lora_rank
lora_ckpt_path ckpt_path seed log_level
"""
DRAWING_LATER = """
ms_mode jit_level device_target plms support_long_prompts lora_ft_unet lora_ft_text_encoder lora_scale ti_ckpt_path
add_watermark check_safety clip_ckpt_path safety_version
"""
OTHER_DEFAULTS = {
    "train": {
        "use_lora": False, "lora_rank": 4, "output_path": "output", "with_prior_preservation": True,
        "prior_loss_weight": 1.0, "num_class_images": 200, "train_data_repeats": 40, "sampling_steps": 50,
        "random_crop": False, "image_size": 512, "train_text_encoder": True, "train_batch_size": 2,
        "ckpt_save_interval": 1, "gradient_accumulation_steps": 1, "start_learning_rate": 5e-06, "optim": "adamw",
        "betas": [0.9, 0.999], "use_ema": False, "clip_grad": False, "max_grad_norm": 1.0, "seed": 3407,
        "epochs": 8, "lora_ft_unet": True, "lora_ft_text_encoder": False, "lora_scale": 1.0, "scale": 9.0,
    },
    "draw": {
        "version": "2.0", "prompt": "A cute wolf in winter forest", "output_path": "output", "sampling_steps": 50,
        "n_iter": 2, "n_samples": 8, "H": 512, "W": 512, "ckpt_path": "models/sd_v2_base-57526ee4.ckpt", "seed": 42,
        "lora_scale": 1.0,
    },
}  # fmt: skip
SOURCES = {
    "diffusers": {flag: row for flag, (_, row) in diffusers_flags.FLAGS.items()},
    "Text-to-Image-Summary": summary.rows("train_text_to_image.py"),
    "stable_diffusion_v2": {**mindone_sd_flags.TRAIN, **mindone_sd_flags.TRAIN_LATER},
    "kohya": kohya_flags.FLAGS,
    "kohya's data set": kohya_flags.SET_FILE,
    "ai-toolkit": ai_toolkit_keys.KEYS,
    "OneTrainer": onetrainer_keys.KEYS,
}


def matrix() -> dict[str, str]:
    return dict(line.split() for line in MATRIX.strip().splitlines())


@pytest.mark.parametrize("column", range(7), ids=SCRIPTS)
def test_each_script_has_exactly_its_flags(column: int) -> None:
    expected = {flag for flag, marks in matrix().items() if marks[column] == "x"}
    assert set(diffusers_flags.rows(SCRIPTS[column])) == expected
    assert set(diffusers_flags.FLAGS) == set(matrix())


@pytest.mark.parametrize("flag", DEFAULTS)
def test_defaults_are_the_scripts_own(flag: str) -> None:
    found = tuple(row.default if (row := diffusers_flags.rows(name).get(flag)) else None for name in SCRIPTS)
    assert found == DEFAULTS[flag]


def test_other_makers_scripts_have_exactly_their_flags() -> None:
    assert set(summary.rows("train_text_to_image_lora.py")) == set(SUMMARY.split())
    assert set(summary.rows("train_text_to_image.py")) == {*SUMMARY.split(), *SUMMARY_FULL.split()}
    assert set(summary.SET) == set(DATASET.split())
    tables = mindone_sd_flags
    assert set(tables.TRAIN) == set(DREAMBOOTH.split())
    assert set(tables.TRAIN_LATER) == set(DREAMBOOTH_LATER.split())
    assert set(tables.DRAW) == set(DRAWING.split())
    assert set(tables.DRAW_LATER) == set(DRAWING_LATER.split())
    train, draw = {**tables.TRAIN, **tables.TRAIN_LATER}, {**tables.DRAW, **tables.DRAW_LATER}
    for rows, expected in ((train, OTHER_DEFAULTS["train"]), (draw, OTHER_DEFAULTS["draw"])):
        assert {name: rows[name].default for name in expected} == expected


def test_the_page_of_scripts_is_current_and_has_a_fate_for_every_flag() -> None:
    there = (Path(__file__).parent.parent / "docs" / "scripts.md").read_text(encoding="utf-8")
    assert there == scripts_page.page(), "run: python -m gesso.importers.scripts_page > docs/scripts.md"
    *_, diffusers, rest = re.split(r"^## (?:diffusers and mindone|Text-to-Image-Summary)$", there, flags=re.MULTILINE)
    own, mindone = rest.split("## mindone's stable_diffusion_v2")
    training, drawing = mindone.split("### text_to_image.py")
    of_summary, of_set = own.split("### create_dataset.py")
    assert _flags(diffusers) == {flag: _owners(marks) for flag, marks in matrix().items()}
    assert set(_flags(of_summary)) == {*SUMMARY.split(), *SUMMARY_FULL.split()}
    assert set(_flags(of_set)) == set(DATASET.split())
    assert set(_flags(training)) == {*DREAMBOOTH.split(), *DREAMBOOTH_LATER.split()}
    assert set(_flags(drawing)) == {*DRAWING.split(), *DRAWING_LATER.split()}
    fates = {"in the recipe", "in the command", "harmless", "differs", "stops"}
    lines = [line.replace("\\|", "") for line in there.splitlines() if re.match(r"\| `[\w-]+` \|", line)]
    assert all(fates & {cell.strip() for cell in line.split("|")} for line in lines if ".py`" not in line)


def _flags(text: str) -> dict[str, str]:
    """The first and second cell of each row of a table that begins with a flag."""
    return dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", text, re.MULTILINE))


def _owners(marks: str) -> str:
    return (
        "all"
        if set(marks) == {"x"}
        else ", ".join(short for short, mark in zip(diffusers_flags.ALL, marks, strict=True) if mark == "x")
    )


def test_kohyas_flags_and_data_set_keys_are_all_there() -> None:
    assert set(KOHYA.split()) - set(kohya_flags.FLAGS) == set()
    extra = set(kohya_flags.FLAGS) - set(KOHYA.split())
    assert {each for each in extra if not each.startswith("metadata_")} == {"text_encoder_batch_size"}
    assert set(SUBSET.split()) == set(kohya_flags.SET_FILE)


@pytest.mark.parametrize("source", SOURCES)
def test_a_row_names_keys_that_the_recipe_has_or_says_why_not(source: str) -> None:
    names = {re.sub(r"\.\d+", "", name) for name in keys()} | set(tables()) | {"adapter", "its keys"}
    for key, row in SOURCES[source].items():
        if row.action in ("mapped", "joined"):
            found = [re.sub(r"\.\d+", "", each.strip()) for each in row.to.split(",")]
            assert set(found) <= names, (key, found)
        else:
            assert row.why, key
            assert not row.why.endswith("."), key


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_mapped_by_name_has_values_of_the_recipe(source: str) -> None:
    for key, row in SOURCES[source].items():
        target = keys().get(re.sub(r"\.\d+\.", ".", row.to)) if row.action == "mapped" else None
        if target is not None and "enum" in target.schema:
            assert row.choices, key
            assert set(row.choices.values()) <= set(target.schema["enum"]), key


def test_the_page_is_current() -> None:
    there = Path(__file__).parent.parent / "docs" / "import.md"
    assert there.read_text(encoding="utf-8") == page(), "run: python -m gesso.importers > docs/import.md"


def test_no_secret_is_shown() -> None:
    secret = {key for rows in SOURCES.values() for key, row in rows.items() if _is_secret(row)}
    assert {"hub_token", "wandb_api_key", "huggingface_token", "secrets.*", "save.hf_token"} <= secret


def _is_secret(row: Row) -> bool:
    return row.secret
