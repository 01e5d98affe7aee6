"""The keys of ai-toolkit's training process, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping

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
    UPLOADS,
    WORKERS,
)
from gesso.importers.rows import NOTHING, Row, differs, harmless, joins, maps, stops

TABLE = Mapping[str, Row]
LOSS = stops("gesso has no such change of the loss; leave it out", off=(*NOTHING, 1, 1.0))
NOISE = stops("gesso has no such change of the noise; leave it out", off=(*NOTHING, 1, 1.0))
MEMORY = differs("gesso has no such way to save memory; results are the same or better, memory is not")
FAMILY = stops("gesso trains Stable Diffusion 1, 2 and XL alone", "switch")
FROM_FILE = stops("gesso starts from one base; merge that file into it first")
LATER = harmless("it is for models or tools that this job does not use")
ARCHITECTURES = (None, "", "sd", "sd1", "sd15", "sd1.5", "sd2", "sdxl")

JOB: TABLE = {
    "job": harmless("it says that the job is to train"),
    "config.name": joins("out"),
    "meta.*": harmless("it is only written into the file"),
    "type": stops(
        "gesso imports sd_trainer alone", "text", off=("sd_trainer", "diffusion_trainer", "ui_trainer", None)
    ),
    "training_folder": joins("out"),
    "sqlite_db_path": LOGS,
    "performance_log_every": LOGS,
    "logging.log_every": LOGS,
    "logging.verbose": LOGS,
    "logging.use_ui_logger": LOGS,
    "logging.use_wandb": stops("gesso writes TensorBoard events and events.jsonl; leave it out", "switch"),
    "logging.project_name": LOGS,
    "logging.run_name": LOGS,
    "device": maps("train.device"),
    "trigger_word": joins("data.trigger", why="and for [trigger] in default_caption and the sample prompts"),
    "torch_profiler": LOGS,
}
NETWORK: TABLE = {
    "network.type": joins("adapter.kind", default="lora"),
    "network.rank": joins("adapter.rank", "whole"),
    "network.linear": joins("adapter.rank", "whole"),
    "network.alpha": joins("adapter.alpha", "number", default=1.0),
    "network.linear_alpha": joins("adapter.alpha", "number"),
    "network.conv": joins("rules.rank", "whole"),
    "network.conv_alpha": joins("rules.alpha", "number"),
    "network.dropout": maps("adapter.dropout", "number"),
    "network.lokr_full_rank": joins("adapter.rank", "switch", default=True),
    "network.lokr_factor": maps("adapter.factor", "whole"),
    "network.transformer_only": harmless("it is for models without a UNet"),
    "network.old_lokr_format": differs(OTHER_NAMES, "switch"),
    "network.split_multistage_loras": LATER,
    "network.layer_offloading": MEMORY,
    "network.all_layers": stops("gesso's adapters sit on linear and convolution layers; leave it out", "switch"),
    "network.pretrained_lora_path": FROM_FILE,
    "network.network_kwargs.*": stops("gesso chooses layers by adapter.targets; leave it out"),
    "network.lorm.*": stops("gesso has no lorm; leave it out"),
    "adapter.*": stops("gesso trains no such adapter; leave it out"),
    "embedding.*": stops("gesso learns words by [[tokens]]; leave it out, and add them to the recipe"),
    "guidance.*": stops("gesso has no guidance training; leave it out"),
    "decorator.*": stops("gesso has no decorator; leave it out"),
    "slider.*": stops("gesso has no sliders; leave it out"),
}
SAVE: TABLE = {
    "save.dtype": differs("gesso saves what learns in float32"),
    "save.save_dtype": differs("gesso saves what learns in float32"),
    "save.save_every": joins("save.every", "whole", default=1000),
    "save.max_step_saves_to_keep": maps("save.keep", "whole", default=5),
    "save.save_format": differs(OTHER_NAMES, off=(None, "diffusers")),
    "save.push_to_hub": UPLOADS,
    "save.hf_repo_id": harmless("gesso uploads nothing"),
    "save.hf_private": harmless("gesso uploads nothing"),
    "save.hf_token": SECRET,
}
DATASETS: TABLE = {
    "datasets.folder_path": joins("data.path"),
    "datasets.dataset_path": joins("data.path"),
    "datasets.type": stops("gesso reads folders of pictures", "text", off=("image", None)),
    "datasets.default_caption": joins("data.prompt"),
    "datasets.trigger_word": joins("data.trigger"),
    "datasets.caption_ext": joins("data", default="txt"),
    "datasets.caption_type": joins("data"),
    "datasets.caption_dropout_rate": joins("train.caption_dropout", "number", default=0.0),
    "datasets.resolution": joins("train.resolution", "any", default=512),
    "datasets.num_repeats": joins("data.repeats", "whole", default=1),
    "datasets.loss_multiplier": joins("data.weight", "number", default=1.0),
    "datasets.network_weight": stops("gesso's adapters act in full; leave it out", "number", off=(None, 1, 1.0)),
    "datasets.is_reg": joins("prior", "switch", default=False),
    "datasets.prior_reg": stops('gesso has this as prior.kind = "teacher"; leave it out and set it there', "switch"),
    "datasets.flip_x": joins("train.flip", "switch", default=False),
    "datasets.flip_y": stops("gesso mirrors left and right alone", "switch"),
    "datasets.random_crop": joins("train.crop", "switch", default=False),
    "datasets.random_scale": stops("gesso does not scale pictures at random", "switch"),
    "datasets.scale": stops("gesso does not scale pictures", "number", off=(None, 1, 1.0)),
    "datasets.square_crop": joins("train.buckets", "switch", default=False, why="it wins over buckets"),
    "datasets.buckets": joins("train.buckets, train.bucket_enlarge", "switch", default=True),
    "datasets.bucket_tolerance": joins("train.bucket_step", "whole", default=64),
    "datasets.shuffle_tokens": joins("data.shuffle", "switch", default=False),
    "datasets.keep_tokens": joins("data.keep_tokens", "whole", default=0, why="it belongs to shuffle_tokens"),
    "datasets.token_dropout_rate": joins("data.tag_dropout", "number", default=0.0),
    "datasets.random_triggers": TAGS,
    "datasets.random_triggers_max": harmless("it belongs to random_triggers"),
    "datasets.replacements": TAGS,
    "datasets.use_short_captions": TAGS,
    "datasets.augments": stops("gesso does not change colours or shapes; leave it out"),
    "datasets.augmentations": stops("gesso does not change colours or shapes; leave it out"),
    "datasets.shuffle_augmentations": harmless("it belongs to augmentations"),
    "datasets.mask_path": MASKS,
    "datasets.alpha_mask": joins("data.masks", "switch", default=False),
    "datasets.invert_mask": stops("gesso learns where a mask is white; invert the masks", "switch"),
    "datasets.mask_min_value": joins("data.unmasked_weight", "number", default=0.0, why="it belongs to a mask"),
    "datasets.poi": stops("gesso crops at the centre or at random", "text"),
    "datasets.cache_latents": CACHED,
    "datasets.cache_latents_to_disk": CACHED,
    "datasets.cache_text_embeddings": CACHED,
    "datasets.num_workers": WORKERS,
    "datasets.prefetch_factor": WORKERS,
    "datasets.cache_latents_num_workers": WORKERS,
    "datasets.fast_image_size": SPEED,
    "datasets.num_frames": LATER,
    "datasets.shrink_video_to_frames": LATER,
    "datasets.fps": LATER,
    "datasets.do_i2v": LATER,
    "datasets.controls": stops("gesso has no control pictures; leave it out"),
    **{
        f"datasets.control_path{number}": stops("gesso has no control pictures; leave it out")
        for number in ("", "_1", "_2", "_3")
    },
    "datasets.inpaint_path": stops("gesso trains no inpainting; leave it out"),
    "datasets.unconditional_path": stops("gesso has no pairs of pictures; leave it out"),
    "datasets.clip_image_path": stops("gesso has no image prompts; leave it out"),
}
TRAIN: TABLE = {
    "train.batch_size": joins("train.batch, train.micro_batch", "whole", default=1),
    "train.steps": joins("train.steps", "whole", default=1000),
    "train.gradient_accumulation": joins("train.batch, train.micro_batch", "whole", default=1),
    "train.gradient_accumulation_steps": joins("train.batch, train.micro_batch, train.steps", "whole", default=1),
    "train.train_unet": joins("model.train", "switch", default=True),
    "train.train_text_encoder": joins("model.train", "switch", default=False),
    "train.gradient_checkpointing": maps("train.gradient_checkpointing", "switch", default=True),
    "train.noise_scheduler": stops("gesso trains Stable Diffusion by ddpm", "text", off=("ddpm", None)),
    "train.optimizer": joins("optim.name", default="adamw"),
    "train.optimizer_params.*": joins("optim"),
    "train.lr": joins("optim.lr", "number", default=1e-6),
    "train.unet_lr": joins("optim.lr", "number"),
    "train.text_encoder_lr": joins("optim.text_encoder_lr", "number"),
    "train.embedding_lr": LATER,
    "train.adapter_lr": LATER,
    "train.refiner_lr": LATER,
    "train.lr_scheduler": joins("optim.schedule", default="constant"),
    "train.lr_scheduler_params.num_warmup_steps": joins("optim.warmup", "whole"),
    "train.lr_scheduler_params.num_cycles": maps("optim.cycles", "whole"),
    "train.lr_scheduler_params.power": maps("optim.power", "number"),
    "train.dtype": maps(
        "train.precision", default="fp32",
        choices={
            "fp32": "fp32", "float32": "fp32", "fp16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16",
        },
    ),
    "train.max_grad_norm": maps("optim.clip", "number", default=1.0),
    "train.ema_config.use_ema": joins("optim.ema", "switch", default=False),
    "train.ema_config.ema_decay": joins("optim.ema", "number", default=0.999),
    "train.min_snr_gamma": joins("objective.weighting, objective.gamma", "number", why="0 is off"),
    "train.snr_gamma": joins("objective.weighting, objective.gamma", "number", why="0 is off"),
    "train.noise_offset": maps("objective.noise_offset", "number"),
    "train.prompt_dropout_prob": maps("train.caption_dropout", "number"),
    "train.min_denoising_steps": joins("objective.times_begin", "whole"),
    "train.max_denoising_steps": joins("objective.times_end", "whole", default=999),
    "train.num_train_timesteps": stops("gesso trains at all 1000 timesteps", "whole", off=(None, 1000)),
    "train.content_or_style": stops(
        "gesso favours timesteps by objective.times; leave it out and set it there", "text", off=("balanced", None)
    ),
    "train.content_or_style_reg": LATER,
    "train.timestep_type": harmless("it is for models of flow matching"),
    "train.linear_timesteps": NOISE,
    "train.linear_timesteps2": NOISE,
    "train.loss_type": stops("gesso's losses are objective.loss; leave it out and set it there", off=("mse", None)),
    "train.loss_target": stops("gesso predicts what the model predicts", off=("noise", None)),
    "train.skip_first_sample": differs("gesso draws before the first step, to show the change", "switch"),
    "train.force_first_sample": harmless("gesso draws before the first step anyway", "switch"),
    "train.disable_sampling": joins("sample.prompts", "switch", default=False),
    "train.xformers": ATTENTION,
    "train.sdp": ATTENTION,
    "train.attention_backend": ATTENTION,
    "train.cache_text_embeddings": CACHED,
    "train.unload_text_encoder": CACHED,
    "train.start_step": stops("gesso goes on with its own runs: start it again", "whole"),
    "train.merge_network_on_save": stops("gesso saves the adapter; merge it afterwards", "switch"),
    "train.diff_output_preservation": stops(
        'gesso has this as prior.kind = "teacher"; leave it out and set it there', "switch"
    ),
    "train.diff_output_preservation_class": harmless("it belongs to diff_output_preservation"),
    "train.diff_output_preservation_multiplier": harmless("it belongs to diff_output_preservation"),
    "train.blank_prompt_preservation": stops(
        'gesso has this as prior.kind = "teacher"; leave it out and set it there', "switch"
    ),
    "train.blank_prompt_preservation_multiplier": harmless("it belongs to blank_prompt_preservation"),
    "train.reg_weight": harmless("there are no sets with is_reg"),
    "train.bypass_guidance_embedding": LATER,
    "train.switch_boundary_every": LATER,
    "train.train_refiner": LATER,
    **{
        f"train.{each}": NOISE
        for each in (
            "noise_multiplier", "target_noise_multiplier", "random_noise_multiplier", "random_noise_shift",
            "img_multiplier", "noisy_latent_multiplier", "latent_multiplier", "match_noise_norm",
            "dynamic_noise_offset", "adaptive_scaling_factor", "force_consistent_noise", "blended_blur_noise",
            "optimal_noise_pairing_samples",
            "do_signal_correction_noise", "do_batch_noise_correction", "do_signal_amplification", "weight_jitter",
        )
    },
    **{
        f"train.{each}": LOSS
        for each in (
            "learnable_snr_gos", "inverted_mask_prior", "do_cfg", "do_random_cfg", "cfg_scale", "cfg_rescale",
            "correct_pred_norm", "pred_scaler", "do_prior_divergence", "target_norm_std", "do_guidance_loss",
            "do_differential_guidance", "do_fft_loss", "t0_loss_target", "max_loss", "standardize_images",
            "standardize_latents", "short_and_long_captions", "single_item_batching", "free_u", "train_turbo",
            "do_paramiter_swapping", "negative_prompt",
        )
    },
}  # fmt: skip
MODEL: TABLE = {
    "model.name_or_path": maps("model.base"),
    "model.arch": stops("gesso trains Stable Diffusion 1, 2 and XL alone", "text", off=ARCHITECTURES),
    "model.is_v2": harmless("gesso reads it from the model", "switch"),
    "model.is_xl": joins("model.train", "switch", default=False),
    "model.is_v_pred": joins("objective.prediction", "switch", default=False),
    "model.vae_path": maps("model.vae"),
    "model.dtype": harmless("train.precision says how gesso computes"),
    "model.vae_dtype": harmless("the autoencoder runs in float32 anyway"),
    "model.te_dtype": harmless("train.precision says how gesso computes"),
    "model.quantize": MEMORY,
    "model.quantize_te": MEMORY,
    "model.qtype": harmless("it belongs to quantize"),
    "model.qtype_te": harmless("it belongs to quantize_te"),
    "model.low_vram": MEMORY,
    "model.layer_offloading": MEMORY,
    "model.layer_offloading_transformer_percent": harmless("it belongs to layer_offloading"),
    "model.layer_offloading_text_encoder_percent": harmless("it belongs to layer_offloading"),
    "model.auto_memory": MEMORY,
    "model.split_model_over_gpus": MEMORY,
    "model.compile": maps("torch.compile", "switch"),
    "model.attn_masking": LATER,
    "model.experimental_xl": LATER,
    "model.use_text_encoder_1": stops("gesso uses all text encoders", "switch", off=(True, None)),
    "model.use_text_encoder_2": stops("gesso uses all text encoders", "switch", off=(True, None)),
    "model.extras_name_or_path": LATER,
    "model.model_kwargs.*": LATER,
    **{
        f"model.{each}": FAMILY
        for each in (
            "is_flux", "is_v3", "is_pixart", "is_pixart_sigma", "is_auraflow", "is_lumina2", "is_ssd", "is_vega",
        )
    },
    **{
        f"model.{each}": FROM_FILE
        for each in (
            "lora_path", "assistant_lora_path", "inference_lora_path", "unconditional_lora_path", "unet_path",
            "refiner_name_or_path", "te_name_or_path", "accuracy_recovery_adapter",
        )
    },
}  # fmt: skip
SAMPLE: TABLE = {
    "sample.sampler": maps("sample.scheduler", choices=SCHEDULERS),
    "sample.sample_every": joins("sample.every", "whole", default=100),
    "sample.sample_start_step": harmless("gesso draws from the beginning"),
    "sample.width": maps("sample.width", "whole"),
    "sample.height": maps("sample.height", "whole"),
    "sample.prompts": joins("sample.prompts", "texts"),
    "sample.samples.prompt": joins("sample.prompts"),
    "sample.samples.*": stops("gesso draws all prompts alike; leave options of single samples out"),
    "sample.neg": joins("sample.negative"),
    "sample.seed": joins("sample.seeds", "whole", default=0),
    "sample.walk_seed": joins("sample.seeds", "switch", default=False),
    "sample.guidance_scale": maps("sample.guidance", "number", default=7.0),
    "sample.sample_steps": maps("sample.steps", "whole", default=20),
    "sample.network_multiplier": stops("gesso draws with the adapter in full", "number", off=(None, 1, 1.0)),
    "sample.guidance_rescale": stops("gesso has no guidance rescale; leave it out", "number"),
    "sample.format": harmless("gesso writes PNG with what each picture was drawn with"),
    "sample.ext": harmless("gesso writes PNG with what each picture was drawn with"),
    "sample.num_frames": LATER,
    "sample.fps": LATER,
    "sample.adapter_conditioning_scale": LATER,
    "sample.refiner_start_at": LATER,
}
KEYS: TABLE = {**JOB, **NETWORK, **SAVE, **DATASETS, **TRAIN, **MODEL, **SAMPLE}
