"""The flags of kohya's sd-scripts for Stable Diffusion 1, 2 and XL, and the keys of its data set files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gesso.importers.common import (
    ATTENTION,
    CACHED,
    LOGS,
    MASKS,
    OTHER_NAMES,
    SCHEDULERS,
    SECRET,
    SPEED,
    TAGS,
    TRACKERS,
    UPLOADS,
    WORKERS,
)
from gesso.importers.rows import NOTHING, Row, differs, harmless, joins, maps, stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a script trains whatever its flags."""

    method: str
    """lora, full or words."""
    sdxl: bool = False
    text: bool = True
    """Whether text encoders learn unless told otherwise."""


SCRIPTS = {
    "train_network.py": Script(method="lora"),
    "sdxl_train_network.py": Script(method="lora", sdxl=True),
    "train_db.py": Script(method="full"),
    "fine_tune.py": Script(method="full", text=False),
    "sdxl_train.py": Script(method="full", sdxl=True, text=False),
    "train_textual_inversion.py": Script(method="words"),
    "sdxl_train_textual_inversion.py": Script(method="words", sdxl=True),
}
_FAMILY = "trains a family of models that gesso does not have"
OTHERS = dict.fromkeys((
        "flux_train.py", "flux_train_network.py", "sd3_train.py", "sd3_train_network.py", "lumina_train.py",
        "lumina_train_network.py", "hunyuan_image_train_network.py", "anima_train_network.py", "anima_train.py",
        "flux_train_control_net.py", "train_control_net.py", "sdxl_train_control_net.py",
        "sdxl_train_control_net_lllite.py",
), _FAMILY)  # fmt: skip
MEMORY = differs("gesso has no such way to save memory; results are the same or better, memory is not")
PRECISE = differs("gesso keeps what learns in float32, whatever it computes in", "switch")
LEARNED_RATE = stops("gesso has no such schedule; leave it out", off=(*NOTHING, 1))
TABLE = Mapping[str, Row]

MODEL: TABLE = {
    "pretrained_model_name_or_path": maps("model.base"),
    "v2": harmless("gesso reads it from the model", "switch"),
    "v_parameterization": joins("objective.prediction", "switch", default=False),
    "vae": maps("model.vae"),
    "no_half_vae": harmless("the autoencoder runs in float32 anyway", "switch"),
    "tokenizer_cache_dir": harmless("it only says where a download goes"),
    "clip_skip": stops("gesso takes the layer that the model was trained with; leave it out", "whole", off=(None, 1)),
    "max_token_length": maps("train.caption_chunks", "whole", choices={75: 1, 150: 2, 225: 3}),
    "network_module": joins("adapter.kind"),
    "network_dim": joins("adapter.rank", "whole", default=4),
    "network_alpha": joins("adapter.alpha", "number", default=1.0),
    "network_dropout": maps(
        "adapter.dropout", "number", why="gesso drops what goes into the adapter, kohya what is between its matrices"
    ),
    "network_args": joins("adapter, rules", "texts"),
    "network_weights": stops("gesso does not go on from a LoRA file; leave it out"),
    "network_train_unet_only": joins("model.train", "switch", default=False),
    "network_train_text_encoder_only": joins("model.train", "switch", default=False),
    "dim_from_weights": stops("gesso does not read the rank from a file; write network_dim", "switch"),
    "scale_weight_norms": stops("gesso does not bound the norms of weights; leave it out", "number"),
    "base_weights": stops("gesso trains on the base alone; merge that LoRA into it first"),
    "base_weights_multiplier": stops("gesso trains on the base alone; merge that LoRA into it first"),
    "train_text_encoder": joins("model.train", "switch", default=False),
    "stop_text_encoder_training": joins("model.train", "whole", why="below 0 is never"),
    "token_string": joins("tokens.name"),
    "init_word": joins("tokens.init"),
    "num_vectors_per_token": joins("tokens.vectors", "whole", default=1),
    "weights": stops("gesso does not go on from a file of a word; leave it out"),
    "use_object_template": stops("gesso has no built-in captions; use class_tokens, a photo of <word>", "switch"),
    "use_style_template": stops("gesso has no built-in captions; use class_tokens, a picture by <word>", "switch"),
    "no_token_padding": stops("gesso pads captions as the model was trained; leave it out", "switch"),
    "weighted_captions": stops("gesso takes captions as they are; leave it out", "switch"),
}  # fmt: skip

LEARNING: TABLE = {
    "optimizer_type": joins("optim.name", default="AdamW"),
    "optimizer_args": joins("optim", "texts"),
    "use_8bit_adam": joins("optim.name", "switch", default=False),
    "use_lion_optimizer": joins("optim.name", "switch", default=False),
    "learning_rate": joins("optim.lr", "number", default=2e-6),
    "unet_lr": joins("optim.lr", "number"),
    "text_encoder_lr": joins("optim.text_encoder_lr, optim.text_encoder_2_lr", "numbers", why="0: it rests"),
    "learning_rate_te": joins("optim.text_encoder_lr", "number"),
    "learning_rate_te1": joins("optim.text_encoder_lr", "number"),
    "learning_rate_te2": joins("optim.text_encoder_2_lr", "number"),
    "block_lr": stops("gesso has one learning rate for all layers; leave it out"),
    "lr_scheduler": joins("optim.schedule", default="constant"),
    "lr_warmup_steps": joins("optim.warmup", "number", default=0, why="below 1: a share of the steps"),
    "lr_scheduler_num_cycles": maps("optim.cycles", "whole"),
    "lr_scheduler_power": maps("optim.power", "number"),
    "lr_scheduler_type": LEARNED_RATE,
    "lr_scheduler_args": LEARNED_RATE,
    "lr_decay_steps": LEARNED_RATE,
    "lr_scheduler_timescale": LEARNED_RATE,
    "lr_scheduler_min_lr_ratio": LEARNED_RATE,
    "max_grad_norm": maps("optim.clip", "number", default=1.0),
    "train_batch_size": joins("train.batch, train.micro_batch", "whole", default=1),
    "gradient_accumulation_steps": joins("train.batch, train.micro_batch", "whole", default=1),
    "max_train_steps": joins("train.steps", "whole", default=1600),
    "max_train_epochs": joins("train.epochs", "whole", why="wins over max_train_steps"),
    "gradient_checkpointing": maps("train.gradient_checkpointing", "switch"),
    "cpu_offload_checkpointing": MEMORY,
    "mixed_precision": maps(
        "train.precision", default="fp32", choices={"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
    ),
    "full_fp16": PRECISE,
    "full_bf16": PRECISE,
    "fp8_base": MEMORY,
    "fp8_base_unet": MEMORY,
    "fused_backward_pass": MEMORY,
    "fused_optimizer_groups": MEMORY,
    "seed": maps("seed", "whole"),
    "prior_loss_weight": joins("prior.weight", "number", default=1.0),
}  # fmt: skip

OBJECTIVE: TABLE = {
    "min_snr_gamma": joins("objective.weighting, objective.gamma", "number", why="0 is off"),
    "debiased_estimation_loss": joins("objective.weighting", "switch", default=False),
    "scale_v_pred_loss_like_noise_pred": stops("gesso has no such weight; min_snr_gamma does the like", "switch"),
    "v_pred_like_loss": stops("gesso has no such weight; leave it out", "number"),
    "zero_terminal_snr": joins("objective.zero_snr", "switch", default=False),
    "noise_offset": maps("objective.noise_offset", "number"),
    "noise_offset_random_strength": maps("objective.noise_offset_random", "switch"),
    "adaptive_noise_scale": stops("gesso's noise offset does not follow the picture; leave it out", "number"),
    "multires_noise_iterations": joins("objective.pyramid_levels", "whole"),
    "multires_noise_discount": joins("objective.pyramid_noise", "number", default=0.3),
    "ip_noise_gamma": maps("objective.input_perturbation", "number"),
    "ip_noise_gamma_random_strength": maps("objective.input_perturbation_random", "switch"),
    "min_timestep": joins("objective.times_begin", "whole"),
    "max_timestep": joins("objective.times_end", "whole"),
    "loss_type": maps("objective.loss", choices={"l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}),
    "huber_schedule": maps(
        "objective.huber_schedule", choices={each: each for each in ("constant", "exponential", "snr")}
    ),
    "huber_c": maps("objective.huber_c", "number"),
    "huber_scale": stops("gesso's huber_c is not scaled; leave it out", "number", off=(None, 1, 1.0)),
    "masked_loss": harmless("it is for conditioning_data_dir; alpha_mask acts without it", "switch"),
    "conditioning_data_dir": MASKS,
}  # fmt: skip

SAMPLING: TABLE = {
    "sample_prompts": joins("sample.prompts"),
    "sample_every_n_steps": joins("sample.every", "whole"),
    "sample_every_n_epochs": joins("sample.every_epochs", "whole"),
    "sample_at_first": harmless("gesso always draws before the first step", "switch"),
    "sample_sampler": maps("sample.scheduler", choices=SCHEDULERS, default="DDIMScheduler"),
    "validation_split": maps("validate.holdout", "number"),
    "validation_seed": harmless("what is held out follows from gesso's seed", "whole"),
    "validate_every_n_steps": joins("validate.every", "whole"),
    "validate_every_n_epochs": joins("validate.every_epochs", "whole"),
    "max_validation_steps": differs("gesso measures all that is held out", "whole"),
}

SAVING: TABLE = {
    "output_dir": joins("out"),
    "output_name": joins("out"),
    "save_every_n_epochs": joins("save.every_epochs", "whole"),
    "save_every_n_steps": joins("save.every", "whole"),
    "save_n_epoch_ratio": stops("write save_every_n_epochs or save_every_n_steps in its place", "whole"),
    "save_last_n_epochs": joins("save.keep", "whole"),
    "save_last_n_steps": joins("save.keep", "whole"),
    "save_last_n_epochs_state": harmless("gesso's checkpoints are always whole; save.keep counts them", "whole"),
    "save_last_n_steps_state": harmless("gesso's checkpoints are always whole; save.keep counts them", "whole"),
    "save_state": harmless("gesso's checkpoints are always whole", "switch"),
    "save_state_on_train_end": harmless("gesso's checkpoints are always whole", "switch"),
    "skip_until_initial_step": stops("gesso goes on with its own runs: start it again", "switch"),
    "initial_epoch": stops("gesso goes on with its own runs: start it again", "whole"),
    "initial_step": stops("gesso goes on with its own runs: start it again", "whole"),
    "resume": stops("gesso goes on with its own runs only; leave it out"),
    "save_precision": differs("gesso saves what learns in float32"),
    "save_model_as": differs(OTHER_NAMES),
    "use_safetensors": harmless("gesso writes nothing else", "switch"),
    "no_metadata": differs("gesso writes what a file was trained with, without private paths, into it", "switch"),
    "training_comment": harmless("gesso writes what a file was trained with into it"),
    "output_config": harmless("gesso keeps the recipe with every run", "switch"),
    "huggingface_repo_id": UPLOADS,
    "huggingface_repo_type": harmless("gesso uploads nothing"),
    "huggingface_path_in_repo": harmless("gesso uploads nothing"),
    "huggingface_token": SECRET,
    "huggingface_repo_visibility": harmless("gesso uploads nothing"),
    "save_state_to_huggingface": UPLOADS,
    "resume_from_huggingface": stops("gesso goes on with its own runs only; leave it out"),
    "async_upload": harmless("gesso uploads nothing", "switch"),
    **{
        f"metadata_{each}": harmless("it is only written into the file, and gesso writes its own")
        for each in ("title", "author", "description", "license", "tags")
    },
}

MACHINE: TABLE = {
    "mem_eff_attn": ATTENTION,
    "xformers": ATTENTION,
    "sdpa": ATTENTION,
    "diffusers_xformers": ATTENTION,
    "torch_compile": maps("torch.compile", "switch"),
    "dynamo_backend": harmless("it says how torch_compile works"),
    "max_data_loader_n_workers": WORKERS,
    "persistent_data_loader_workers": WORKERS,
    "cache_latents": CACHED,
    "cache_latents_to_disk": CACHED,
    "cache_text_encoder_outputs": CACHED,
    "cache_text_encoder_outputs_to_disk": CACHED,
    "text_encoder_batch_size": SPEED,
    "vae_batch_size": SPEED,
    "skip_cache_check": CACHED,
    "disable_mmap_load_safetensors": SPEED,
    "lowram": SPEED,
    "highvram": SPEED,
    "ddp_timeout": SPEED,
    "ddp_gradient_as_bucket_view": SPEED,
    "ddp_static_graph": SPEED,
    "deepspeed": stops("gesso has no DeepSpeed; leave it out", "switch"),
    **{
        each: harmless("it belongs to deepspeed")
        for each in (
            "zero_stage", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
            "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model", "fp16_master_weights_and_gradients",
        )
    },
    "logging_dir": LOGS,
    "log_with": TRACKERS,
    "log_prefix": LOGS,
    "log_tracker_name": LOGS,
    "log_tracker_config": LOGS,
    "log_config": LOGS,
    "wandb_run_name": LOGS,
    "wandb_api_key": harmless("gesso keeps no password or token", secret=True),
    "console_log_level": LOGS,
    "console_log_file": LOGS,
    "console_log_simple": LOGS,
}  # fmt: skip

SUBSET: TABLE = {
    "num_repeats": joins("data.repeats", "whole", default=1),
    "caption_extension": joins("data", default=".caption", why="gesso reads .txt, then .caption, beside a picture"),
    "shuffle_caption": joins("data.shuffle", "switch", default=False),
    "caption_separator": joins("data.separator", default=",", why="it belongs to shuffle_caption"),
    "keep_tokens": joins("data.keep_tokens", "whole", default=0, why="it belongs to shuffle_caption"),
    "keep_tokens_separator": TAGS,
    "secondary_separator": TAGS,
    "enable_wildcard": joins("data.wildcards", "switch", default=False),
    "caption_prefix": joins("data.prefix", why="with the space that kohya puts behind it"),
    "caption_suffix": joins("data.suffix", why="with the space that kohya puts in front of it"),
    "caption_dropout_rate": joins("train.caption_dropout", "number", default=0.0),
    "caption_dropout_every_n_epochs": stops("gesso drops captions by caption_dropout_rate alone", "whole"),
    "caption_tag_dropout_rate": joins("data.tag_dropout", "number", default=0.0),
    "token_warmup_min": harmless("it belongs to token_warmup_step", "whole"),
    "token_warmup_step": TAGS,
    "color_aug": stops("gesso does not change colours; leave it out", "switch"),
    "flip_aug": joins("train.flip", "switch", default=False),
    "face_crop_aug_range": stops("gesso does not look for faces; leave it out"),
    "random_crop": joins("train.crop", "switch", default=False),
    "resize_interpolation": joins("train.interpolation"),
    "cache_info": CACHED,
    "alpha_mask": joins("data.masks", "switch", default=False),
    "custom_attributes": harmless("sd-scripts itself makes no use of it"),
}
BUCKETED: TABLE = {
    "enable_bucket": joins("train.buckets", "switch", default=False, why="in the same sizes"),
    "min_bucket_reso": joins("train.bucket_min", "whole", default=256, why="rounded down to bucket_reso_steps"),
    "max_bucket_reso": joins("train.bucket_max", "whole", default=1024, why="rounded up to bucket_reso_steps"),
    "bucket_reso_steps": joins("train.bucket_step", "whole", default=64),
    "bucket_no_upscale": joins("train.bucket_enlarge", "switch", default=False, why="the opposite of it"),
}
DATA: TABLE = {
    **{key: row for key, row in SUBSET.items() if key not in ("num_repeats", "custom_attributes")},
    **BUCKETED,
    "resolution": joins("train.resolution", "any"),
    "train_data_dir": joins("data", why='its folders such as "10_sks dog": repeats and prompt'),
    "reg_data_dir": joins("prior", why='its one folder such as "1_dog": class pictures and prompt'),
    "caption_extention": joins("data", why="an old spelling of caption_extension"),
    "in_json": stops("gesso reads captions beside the pictures or from metadata.jsonl, not from in_json"),
    "dataset_repeats": harmless("it belongs to in_json", "whole"),
    "dataset_class": stops("gesso runs no code of yours; leave it out"),
    "debug_dataset": stops("it only shows pictures; `gesso train RECIPE --dry-run` tells about them", "switch"),
    "dataset_config": joins("data", why="its file is read too"),
    "config_file": joins("its keys", why="read too; flags win over it"),
}
"""Flags about pictures."""
SET_FILE: TABLE = {
    **SUBSET,
    **BUCKETED,
    "batch_size": joins("train.batch, train.micro_batch", "whole"),
    "resolution": joins("train.resolution", "any"),
    "network_multiplier": stops("gesso's adapters act in full; leave it out", "number", off=(None, 1, 1.0)),
    "image_dir": joins("data.path"),
    "class_tokens": joins("data.prompt", "text"),
    "is_reg": joins("prior.path", "switch", default=False),
    "metadata_file": stops("gesso reads captions beside the pictures or from metadata.jsonl, not from metadata_file"),
    "conditioning_data_dir": MASKS,
    "validation_split": joins("validate.holdout", "number"),
    "validation_seed": harmless("what is held out follows from gesso's seed", "whole"),
}
"""Keys of a data set file, at any of its three levels."""
FLAGS: TABLE = {**MODEL, **LEARNING, **OBJECTIVE, **SAMPLING, **SAVING, **MACHINE, **DATA}
ONLY = {
    "lora": (
        "network_module", "network_dim", "network_alpha", "network_dropout", "network_args", "network_weights",
        "network_train_unet_only", "network_train_text_encoder_only", "dim_from_weights", "scale_weight_norms",
        "base_weights", "base_weights_multiplier", "unet_lr", "text_encoder_lr", "training_comment",
    ),
    "words": (
        "token_string", "init_word", "num_vectors_per_token", "weights", "use_object_template", "use_style_template",
    ),
    "full": (
        "train_text_encoder", "stop_text_encoder_training", "learning_rate_te", "learning_rate_te1",
        "learning_rate_te2", "block_lr", "no_token_padding",
    ),
}  # fmt: skip
"""Flags that only the scripts of one method have."""


def rows(script: Script) -> dict[str, Row]:
    """The flags of a script."""
    others = {flag for method, flags in ONLY.items() if method != script.method for flag in flags}
    return {flag: row for flag, row in FLAGS.items() if flag not in others}
