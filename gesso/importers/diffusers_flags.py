"""The flags of the seven training scripts of diffusers and mindone, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gesso.importers.common import ALL_KEPT, ATTENTION, LOGS, SPEED, WORKERS
from gesso.importers.rows import Row, differs, harmless, joins, maps, stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a script does whatever its flags: full fine-tuning or LoRA, its family, and how it draws."""

    short: str
    out: str
    lora: bool = False
    sdxl: bool = False
    dreambooth: bool = False
    sampling_steps: int = 25
    solver: str = ""
    """The scheduler that it draws with, if not the model's own."""
    interpolation: str = ""
    """How it resizes pictures, where no flag says so and it is not gesso's default."""
    maker: str = "diffusers"
    project: str = "text2image-fine-tune"
    """What it calls its runs on Weights & Biases."""

    @property
    def guidance(self) -> float:
        """The default of the pipeline that it draws with."""
        return 5.0 if self.sdxl else 7.5


SOLVER = "DPMSolverMultistepScheduler"
SCRIPTS = {
    "train_text_to_image.py": Script(short="T2I", out="sd-model-finetuned", sampling_steps=20),
    "train_text_to_image_lora.py": Script(short="T2I-L", out="sd-model-finetuned-lora", lora=True, sampling_steps=30),
    "train_text_to_image_sdxl.py": Script(
        short="XL", out="sdxl-model-finetuned", sdxl=True, project="text2image-fine-tune-sdxl"
    ),
    "train_text_to_image_lora_sdxl.py": Script(short="XL-L", out="sd-model-finetuned-lora", lora=True, sdxl=True),
    "train_dreambooth.py": Script(short="DB", out="dreambooth-model", dreambooth=True, interpolation="bilinear"),
    "train_dreambooth_lora.py": Script(
        short="DB-L", out="lora-dreambooth-model", lora=True, dreambooth=True, solver=SOLVER, project="dreambooth-lora"
    ),
    "train_dreambooth_lora_sdxl.py": Script(
        short="DB-XL",
        out="lora-dreambooth-model",
        lora=True,
        sdxl=True,
        dreambooth=True,
        solver=SOLVER,
        project="dreambooth-lora-sd-xl",
    ),
}
ALL = ("T2I", "T2I-L", "XL", "XL-L", "DB", "DB-L", "DB-XL")
TEXT = ALL[:4]
DREAM = ALL[4:]
LORA = ("T2I-L", "XL-L", "DB-L", "DB-XL")
Flags = dict[str, tuple[tuple[str, ...], Row]]

MODEL_AND_DATA: Flags = {
    "pretrained_model_name_or_path": (ALL, maps("model.base")),
    "revision": (ALL, maps("model.revision")),
    "variant": (ALL, harmless("gesso reads the full-precision weights; train.precision says how it computes")),
    "pretrained_vae_model_name_or_path": (("XL", "XL-L", "DB-XL"), maps("model.vae")),
    "tokenizer_name": (
        ("DB", "DB-L"), stops("gesso takes the model's own tokenizer; leave it out, or copy the other into the model")
    ),
    "cache_dir": (
        ("T2I", "T2I-L", "XL", "XL-L", "DB-XL"),
        harmless("it only says where downloads go; set the variable HF_HUB_CACHE for that"),
    ),
    "dataset_name": ((*TEXT, "DB-XL"), joins("data.path", why="a folder on this machine, or \"hub:user/name\"")),
    "dataset_config_name": ((*TEXT, "DB-XL"), joins("data.config", why="of a Hub data set")),
    "train_data_dir": (TEXT, joins("data.path")),
    "image_column": ((*TEXT, "DB-XL"), maps("data.0.image_column")),
    "caption_column": ((*TEXT, "DB-XL"), maps("data.0.caption_column")),
    "max_train_samples": (TEXT, maps("data.0.max_samples", "whole")),
    "instance_data_dir": (DREAM, joins("data.path")),
    "instance_prompt": (
        DREAM,
        joins("data.prompt", why="a caption beside a picture, which the script ignores, wins over it"),
    ),
    "class_data_dir": (DREAM, joins("prior.path", why="where it is missing gesso draws into the run folder")),
    "class_prompt": (DREAM, joins("prior.prompt")),
    "with_prior_preservation": (DREAM, joins("prior.prompt", "switch", default=False)),
    "prior_loss_weight": (DREAM, joins("prior.weight", "number", default=1.0)),
    "num_class_images": (DREAM, joins("prior.pictures", "whole", default=100)),
    "sample_batch_size": (DREAM, harmless("gesso draws class pictures one at a time", "whole")),
    "prior_generation_precision": (DREAM, joins("train.precision", why="class pictures are drawn in it too")),
    "repeats": (("DB-XL",), maps("data.0.repeats", "whole")),
    "tokenizer_max_length": (
        ("DB", "DB-L"),
        stops("gesso takes the tokenizer's own length; leave it out", "whole", off=(None, 77)),
    ),
    "text_encoder_use_attention_mask": (("DB", "DB-L"), stops("it is for DeepFloyd IF, which gesso does not train")),
    "pre_compute_text_embeddings": (("DB", "DB-L"), harmless("gesso encodes each caption once by itself", "switch")),
    "class_labels_conditioning": (("DB", "DB-L"), stops("it is for DeepFloyd IF, which gesso does not train")),
    "validation_images": (("DB", "DB-L"), stops("gesso draws from prompts alone; leave it out")),
    "proportion_empty_prompts": (
        ("XL",),
        maps("train.caption_dropout", "number", why="drawn anew each time; the script empties the same ones for good"),
    ),
    "resolution": (ALL, maps("train.resolution", "whole", default={"": 512, "XL": 1024, "XL-L": 1024, "DB-XL": 1024})),
    "center_crop": (ALL, joins("train.crop", "switch", default=False)),
    "random_flip": (tuple(each for each in ALL if each not in ("DB", "DB-L")), maps("train.flip", "switch")),
    "image_interpolation_mode": (
        tuple(each for each in ALL if each != "DB"),
        maps("train.interpolation", choices={each: each for each in ("lanczos", "bicubic", "bilinear")},
             why="mindone's scripts and train_dreambooth.py always take bilinear"),
    ),
}  # fmt: skip

PRODIGY_SWITCH = "False is off here; the script takes any word for on"
OPTIMISATION: Flags = {
    "train_batch_size": (
        ALL, joins("train.batch, train.micro_batch", "whole", default={"": 16, "DB": 4, "DB-L": 4, "DB-XL": 4})
    ),
    "gradient_accumulation_steps": (ALL, joins("train.batch, train.micro_batch", "whole", default=1)),
    "num_train_epochs": (
        ALL, joins("train.epochs", "whole", default={"": 100, "DB": 1, "DB-L": 1, "DB-XL": 1})
    ),
    "max_train_steps": (ALL, joins("train.steps", "whole", why="wins over num_train_epochs")),
    "gradient_checkpointing": (ALL, maps("train.gradient_checkpointing", "switch")),
    "learning_rate": (ALL, joins("optim.lr", "number", default={"": 1e-4, "DB": 5e-6, "DB-L": 5e-4})),
    "text_encoder_lr": (("DB-XL",), joins("optim.text_encoder_lr", "number", default=5e-6)),
    "scale_lr": (ALL, joins("optim.lr", "switch", default=False, why="times accumulation, batch size and devices")),
    "lr_scheduler": (ALL, joins("optim.schedule", default="constant")),
    "lr_warmup_steps": (ALL, joins("optim.warmup", "whole", default=500, why="constant takes none in the script")),
    "lr_num_cycles": (DREAM, maps("optim.cycles", "whole")),
    "lr_power": (DREAM, maps("optim.power", "number")),
    "snr_gamma": (
        tuple(each for each in ALL if each != "DB-L"),
        joins("objective.weighting, objective.gamma", "number", why="0 is off"),
    ),
    "noise_offset": (TEXT, maps("objective.noise_offset", "number")),
    "offset_noise": (("DB",), joins("objective.noise_offset", "switch", default=False, why="0.1, as in the script")),
    "input_perturbation": (("T2I",), maps("objective.input_perturbation", "number")),
    "prediction_type": (
        TEXT,
        maps("objective.prediction", choices={each: each for each in ("epsilon", "v_prediction", "sample")}),
    ),
    "dream_training": (("T2I",), maps("objective.dream", "switch")),
    "dream_detail_preservation": (("T2I",), maps("objective.dream_detail", "number")),
    "timestep_bias_strategy": (("XL",), joins("objective.times", default="none")),
    "timestep_bias_multiplier": (("XL",), joins("objective.times_multiplier", "number", default=1.0)),
    "timestep_bias_begin": (("XL",), joins("objective.times_begin", "whole", default=0)),
    "timestep_bias_end": (("XL",), joins("objective.times_end", "whole", default=1000)),
    "timestep_bias_portion": (("XL",), joins("objective.times_portion", "number", default=0.25)),
    "do_edm_style_training": (("DB-XL",), joins("objective.edm_style", "switch", default=False)),
    "optimizer": (("DB-XL",), joins("optim.name", default="AdamW")),
    "use_8bit_adam": (ALL, joins("optim.name", "switch", default=False)),
    "adam_beta1": (ALL, joins("optim.betas", "number", default=0.9)),
    "adam_beta2": (ALL, joins("optim.betas", "number", default=0.999)),
    "adam_epsilon": (ALL, maps("optim.eps", "number", default=1e-8)),
    "adam_weight_decay": (ALL, maps("optim.weight_decay", "number", default={"": 1e-2, "DB-XL": 1e-4})),
    "adam_weight_decay_text_encoder": (("DB-XL",), joins("optim.text_encoder_weight_decay", "number", default=1e-3)),
    "prodigy_beta3": (("DB-XL",), maps("optim.beta3", "number")),
    "prodigy_decouple": (("DB-XL",), maps("optim.decouple", "switch", why=PRODIGY_SWITCH)),
    "prodigy_use_bias_correction": (("DB-XL",), maps("optim.bias_correction", "switch", why=PRODIGY_SWITCH)),
    "prodigy_safeguard_warmup": (("DB-XL",), maps("optim.safeguard_warmup", "switch", why=PRODIGY_SWITCH)),
    "max_grad_norm": (ALL, joins("optim.clip", "number", default=1.0, why="0 is off")),
    "set_grads_to_none": (("DB",), SPEED),
    "use_ema": (("T2I", "XL"), joins("optim.ema", "switch", default=False, why="0.9999, the script's decay")),
    "offload_ema": (("T2I",), maps("optim.ema_offload", "switch")),
    "foreach_ema": (("T2I",), SPEED),
    "non_ema_revision": (("T2I",), stops("gesso trains the weights of model.revision; name that one by --revision")),
    "train_text_encoder": (("XL-L", *DREAM), joins("model.train", "switch", default=False)),
    "rank": (LORA, joins("adapter.rank", "whole", default=4)),
    "lora_rank": (LORA, joins("adapter.rank", "whole", why="mindone's name for rank")),
    "lora_dropout": (("DB-L", "DB-XL"), maps("adapter.dropout", "number")),
    "use_dora": (("DB-XL",), joins("adapter.kind", "switch", default=False)),
    "debug_loss": (("XL-L",), LOGS),
}  # fmt: skip

RUN: Flags = {
    "output_dir": (ALL, maps("out", default={each.short: each.out for each in SCRIPTS.values()})),
    "seed": (ALL, maps("seed", "whole", why="0 where there is none")),
    "mixed_precision": (ALL, joins("train.precision", why="or the launcher's; fp32 where none says it")),
    "allow_tf32": (ALL, maps("torch.tf32", "switch", default=False)),
    "enable_xformers_memory_efficient_attention": (ALL, ATTENTION),
    "enable_npu_flash_attention": (("XL", "XL-L"), ATTENTION),
    "dataloader_num_workers": (ALL, replace(WORKERS, kind="whole")),
    "local_rank": (ALL, harmless("the launcher sets it", "whole")),
    "logging_dir": (ALL, harmless("gesso writes TensorBoard events into logs, in the run folder")),
    "report_to": (ALL, joins("track.wandb", why="TensorBoard is written in any case; comet_ml stops")),
    "tracker_project_name": (("T2I",), joins("track.wandb", why="the name of the project there")),
    "checkpointing_steps": (ALL, maps("save.every", "whole", default=500)),
    "checkpoints_total_limit": (ALL, joins("save.keep", "whole", why=f"{ALL_KEPT} where the script keeps all")),
    "resume_from_checkpoint": (
        ALL,
        differs(
            "a path is taken as it is, else by its last part inside output_dir, where alone the script looks; "
            "`latest` is what gesso does by itself", "text", off=("latest", None),
        ),
    ),
    "validation_prompt": (tuple(each for each in ALL if each != "T2I"), joins("sample.prompts")),
    "validation_prompts": (("T2I",), joins("sample.prompts", "texts")),
    "num_validation_images": (tuple(each for each in ALL if each != "T2I"), joins("sample.seeds", "whole", default=4)),
    "validation_epochs": (
        ("T2I", "T2I-L", "XL", "XL-L", "DB-L", "DB-XL"),
        joins("sample.every_epochs", "whole", default={"T2I": 5, "": 1, "DB-L": 50, "DB-XL": 50}),
    ),
    "validation_steps": (("DB",), maps("sample.every", "whole", default=100)),
    "validation_scheduler": (
        ("DB",),
        maps("sample.scheduler", default=SOLVER, choices={each: each for each in (SOLVER, "DDPMScheduler")}),
    ),
    "skip_save_text_encoder": (("DB",), differs("gesso's run folder is always a whole pipeline", "switch")),
    "output_kohya_format": (
        ("DB-XL",), differs("written once the command is complete; `gesso convert` writes it at any time", "switch")
    ),
    "push_to_hub": (ALL, joins("hub.push", "switch", default=False, why="a private repository, where there is none")),
    "hub_token": (ALL, harmless("set HF_TOKEN, or log in: gesso keeps no token", "text", secret=True)),
    "hub_model_id": (ALL, joins("hub.push", why="OWNER/NAME")),
    "distributed": (ALL, harmless("the launcher says how many devices there are", "switch")),
    "enable_mindspore_data_sink": (ALL, SPEED),
}  # fmt: skip
FLAGS: Flags = {**MODEL_AND_DATA, **OPTIMISATION, **RUN}
LEAST = {
    "max_train_samples": 1, "num_class_images": 1, "sample_batch_size": 1, "lr_warmup_steps": 0, "repeats": 1,
    "checkpointing_steps": 1, "checkpoints_total_limit": 1, "dataloader_num_workers": 0, "num_train_epochs": 1,
    "tokenizer_max_length": 1,
}  # fmt: skip
"""The least that a number may be, where the recipe allows less or has no such key."""
LEAST_DRAWN = {"num_validation_images": 1, "validation_epochs": 1, "validation_steps": 1}
"""The same of what counts only with prompts to draw."""
MINDONE = ("lora_rank", "distributed", "enable_mindspore_data_sink")
"""Flags that only mindone's scripts have."""
SWITCHES = ("enable_xformers_memory_efficient_attention", "enable_npu_flash_attention", "set_grads_to_none",
            "foreach_ema", "debug_loss", "enable_mindspore_data_sink", "text_encoder_use_attention_mask")  # fmt: skip


def rows(name: str) -> dict[str, Row]:
    """The flags of a script, with that script's defaults."""
    short = SCRIPTS[name].short
    found = {}
    for flag, (scripts, row) in FLAGS.items():
        if short not in scripts:
            continue
        if isinstance(row.default, Mapping):
            row = replace(row, default=row.default.get(short, row.default.get("")))
        found[flag] = replace(row, kind="switch") if flag in SWITCHES else row
    return found
