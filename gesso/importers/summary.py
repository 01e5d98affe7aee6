"""The scripts of friedrichor's Text-to-Image-Summary (March 2023): captions, a data set, a LoRA.

Its training scripts are those of diffusers 0.14 with a data set on disk and a file of prompts: diffusers.py translates
them by the table here. The other two scripts become `gesso caption` and `gesso pack`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from gesso.importers.diffusers_flags import FLAGS, Script
from gesso.importers.draft import Entry, Imported
from gesso.importers.rows import Row, joins, maps
from gesso.importers.shell import Command, flags
from gesso.importers.verbs import Wish

NAME = "Text-to-Image-Summary"
SCRIPTS = {
    "train_text_to_image.py": Script(
        short="S", out="sd-model-finetuned", sampling_steps=30, interpolation="bilinear", maker=NAME
    ),
    "train_text_to_image_lora.py": Script(
        short="S-L", out="sd-model-finetuned-lora", lora=True, sampling_steps=30, interpolation="bilinear", maker=NAME
    ),
}
ADDED: dict[str, Row] = {
    "dataset_from_disk": joins("data.path, data.format", "switch", default=False),
    "dataset_disk_path": joins("data.path", why="read with --dataset_from_disk alone"),
    "validation_prompts_dir": joins("sample.prompts_file", why="a text file, one prompt a line, in spite of its name"),
    "validation_negative_prompts_dir": joins("sample.negative", why="the first line of the file, as in the script"),
}
"""What tells these scripts from diffusers' of the same name."""
SHARED = (
    "pretrained_model_name_or_path", "revision", "dataset_name", "dataset_config_name", "train_data_dir",
    "image_column", "caption_column", "num_validation_images", "validation_epochs", "max_train_samples",
    "output_dir", "cache_dir", "seed", "resolution", "center_crop", "random_flip", "train_batch_size",
    "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "gradient_checkpointing", "learning_rate",
    "scale_lr", "lr_scheduler", "lr_warmup_steps", "use_8bit_adam", "allow_tf32", "dataloader_num_workers",
    "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "push_to_hub", "hub_token",
    "hub_model_id", "logging_dir", "mixed_precision", "report_to", "local_rank", "checkpointing_steps",
    "checkpoints_total_limit", "resume_from_checkpoint", "enable_xformers_memory_efficient_attention",
)  # fmt: skip
"""What they have in common with diffusers'."""
FULL = ("use_ema", "non_ema_revision")
"""What only the script that trains the weights themselves has."""
RANK = 4
"""Of its LoRA; there is no flag for it."""
WHYS = {
    "gradient_checkpointing": "the script reads it and never does it",
    "seed": "where there is none, 0; the script fails without one when it draws",
}

SET: dict[str, Row] = {
    "save_to_disk": joins(
        "pack --to", "switch", default=True, why="False uploads; to the script every word is true, and its README has "
        "it backwards",
    ),
    "dataset_name": joins("pack OUT", default="Text2Image_example", why="datasets/<name>, and its name on the Hub"),
    "user_name": joins("pack --push", why="read with --save_to_disk=False alone"),
}  # fmt: skip
PICTURES, CAPTIONS, CAPTIONER = "images", "image_captions.json", "Salesforce/blip2-opt-6.7b"
BEAMS, TOKENS = 5, 64


def rows(name: str) -> dict[str, Row]:
    """The flags of a training script, with its defaults."""
    script = SCRIPTS[name]
    found = {}
    for flag in (*SHARED, *(() if script.lora else FULL)):
        row = FLAGS[flag][1]
        default = row.default.get("") if isinstance(row.default, Mapping) else row.default
        found[flag] = replace(row, default=default, why=WHYS.get(flag, row.why))
    found["output_dir"] = maps("out", default=script.out)
    return {**found, **ADDED}


def captions(command: Command) -> Imported:
    """generate_captions.py, which has no flags; those of `gesso caption` may stand behind it."""
    words = ("caption", PICTURES, f"--model={CAPTIONER}", f"--to={CAPTIONS}", "--out=.", f"--beams={BEAMS}",
             f"--max-tokens={TOKENS}", *command.words)  # fmt: skip
    note = (
        "the script takes cuda:1, absolute names and whatever lies in images/; gesso takes the device that is there, "
        "names that hold on other machines, and pictures alone. Flags of `gesso caption` may follow, such as --model"
    )
    entry = Entry(key=command.script, value=None, fate="differs", to={}, note=note)
    return Imported(source=command.script, entries=(entry,), text=shlex.join(["gesso", *words]), words=words)


def dataset(command: Command) -> Imported:
    """create_dataset.py: images/ and image_captions.json as a data set on this disk, or on the Hub."""
    wish = Wish(command.script, SET, ("pack", PICTURES))
    wish.take(flags(command.words, SET))
    name = wish.values["dataset_name"]
    wish.put("OUT", f"datasets/{name}", "dataset_name")
    wish.put("--captions", CAPTIONS)
    if wish.values["save_to_disk"]:
        note = "on this disk, as it says; its README says the opposite: --save_to_disk=False --user_name=YOU uploads"
        wish.put("--to", "save_to_disk", "save_to_disk", note=note)
        wish.say("user_name", "harmless", "it is read with --save_to_disk=False alone")
    else:
        user = wish.values["user_name"]
        wish.put("--to", "parquet", "save_to_disk", note="uploads; to the script False is as true as any other word")
        if user:
            wish.put("--push", f"{user}/{name}", "user_name", note="private; `gesso pack --public` makes it public")
        else:
            wish.stop("whose data set is it on the Hub? give --user_name", "--user_name")
    return wish.finish()
