"""`python -m gesso.importers.scripts_page > docs/scripts.md`: the page about the scripts' commands, from the tables."""

from __future__ import annotations

from collections.abc import Mapping

from gesso.importers import summary
from gesso.importers.diffusers_flags import ALL, FLAGS, SCRIPTS
from gesso.importers.mindone_sd_flags import DRAW, DRAW_LATER, TRAIN, TRAIN_LATER
from gesso.importers.rows import Row

HEAD = """\
# The scripts' commands

<!-- Made from gesso/importers by `python -m gesso.importers.scripts_page > docs/scripts.md`; a test holds it so. -->

Put `gesso` in front of a command of the scripts below, in place of `python` or before it, and it is carried out:

    gesso train_text_to_image_lora.py --pretrained_model_name_or_path=… --train_data_dir=photos --rank=8
    gesso accelerate launch --mixed_precision=fp16 train_dreambooth.py --instance_data_dir=dog …
    gesso train_text_to_image_lora.sh          # the shell file with the command; only its words are read

The command becomes a recipe. It is printed with the flag behind every line, and with what became of each flag; it is
kept in the run folder as `command.toml`, and trained. The same command again goes on where the run stopped.

* `--dry-run` shows the recipe and what would be done, and writes no run folder.
* Keys of the recipe ([recipe.md](recipe.md)) may stand among the flags of a training script, and win:
  `--train.buckets`, `--sample.steps=30`; `--model.like=FOLDER` for a model in one file. So may `--engine=mindspore`.
* A script's defaults are kept, but for the faults below. Steps are optimiser steps, and a batch is pictures on a device
  × accumulation × devices of the launcher.
* A misspelt flag stops with the nearest name. So do flags that contradict each other, missing ones, and numbers that
  cannot be. Nothing is loaded before that.
* `gesso import COMMAND` writes the recipe into a file and trains nothing.
* The output folder has what the script would have left: a pipeline, or `pytorch_lora_weights.safetensors`; `unet`, or
  the LoRA, in each `checkpoint-N`; TensorBoard events in `logs`; and always a model card that names the base.

| fate | meaning |
|---|---|
| in the recipe | by itself or together with other flags |
| harmless | changes nothing that is learned |
| differs | gesso goes another way, says so, and carries on |
| stops | nothing is done; one sentence says what to do instead. A value that asks for nothing does not stop |
"""
NAMES = """
## Scripts of the same name

The flags tell them apart. Flags of both in one command stop it.

| script | maker | known by |
|---|---|---|
| `train_text_to_image.py`, `train_text_to_image_lora.py` | diffusers, mindone | any others |
| | Text-to-Image-Summary (2023) | {summary} |
| `train_dreambooth.py` | diffusers, mindone | any others |
| | mindone's stable_diffusion_v2 (2023) | {mindone} |
| `text_to_image.py` | mindone's stable_diffusion_v2 | flags of its last version bring that one's defaults |
"""
FAULTS = """
## What gesso does not take over

| the script | gesso |
|---|---|
| T2I-L: `max_grad_norm` clips nothing, for the list of weights is used up | clips |
| XL, XL-L: accumulation stretches schedule and warm-up | both are in optimiser steps |
| all: `--max_grad_norm=0` makes every gradient zero, `--snr_gamma=0` every weight | 0 is off |
| DB-XL, mindone's DB and DB-L: Min-SNR of v-prediction has an old rule | min(SNR, γ)/(SNR + 1) |
| DB, DB-XL: Min-SNR with class pictures fails, or weighs them too | weighs your pictures alone |
| DB-XL: with a batch above 1, captions and pictures of class and subject are mixed up | each has its own |
| DB-XL: class pictures have the size and corner of yours; mindone's have none | their own |
| DB-XL: each picture is cropped and mirrored once, for all epochs | anew each time |
| DB-XL: weights of EDM-style training do not fit class pictures | each half has its own |
| XL: a cached latent and its crop corner come from different crops | cached together, random crops not at all |
| XL: `proportion_empty_prompts` empties the same captions for good | draws anew each time |
| XL: `timestep_bias_multiplier` of 0 or less is taken | stops |
| T2I, T2I-L, XL-L: `prediction_type` is not saved, so a v-trained model draws as epsilon | saved with the model |
| bf16, fp16: noise is rounded where there is little of it | computed in fp32 |
| bf16: a LoRA stays bf16, and small steps are lost; fp16: resuming fails on fp16 gradients | what learns is fp32 |
| resume: part of an epoch is seen again, in mindone without the optimiser's state | goes on exactly |
| resume: a path elsewhere is not used, without a word | used, or the command stops |
| `checkpoints_total_limit`: the old are deleted before the new is written | after it |
| DB*: a folder from `snapshot_download` fails on its `.cache` | hidden folders and what is no picture are left out |
| DB-XL: `--prodigy_decouple=False` is taken for on | off |
| only with `push_to_hub`: a model card | always |
| DB, DB-L: no accumulation on several devices while the text encoder learns | the same batch on any number of devices |
| SDXL's own VAE in half precision makes black pictures | VAE in fp32 |
| mindone: Adam without bias correction, no guard against overflow | both |
| mindone's stable_diffusion_v2: `SD_VERSION` of the environment changes the model | the model says what it is |
| mindone's stable_diffusion_v2: `--train_text_encoder` has two defaults | true, as on its command line |
| Text-to-Image-Summary: `gradient_checkpointing` is not done; without `seed` drawing fails | done; the seed is 0 |
| Text-to-Image-Summary: every `--save_to_disk` is true, and the README has it backwards | what it says |
| Text-to-Image-Summary: captions by cuda:1 alone, under absolute names | any device, relative names |

As in the scripts, `lr_scheduler=constant` takes no warm-up, though `lr_warmup_steps` is 500 by default, and pictures
are cropped to a square: `--train.buckets` keeps their shape. mindone resizes by `bilinear` always, diffusers by
`lanczos` unless told; gesso takes mindone's where a flag of mindone's own is given. stable_diffusion_v2 draws class
pictures by DDIM, gesso by the model's own scheduler; its UNet has a dropout of 0.1, which gesso has not.
"""


def page() -> str:
    """docs/scripts.md as one text."""
    own = ", ".join(f"`{name}`" for name in summary.ADDED)
    mindone = "`train_config`, `pretrained_model_path`, `image_size`, `epochs` and others of its table below"
    parts = [HEAD, NAMES.format(summary=own, mindone=mindone), FAULTS, "\n## diffusers and mindone\n\n"]
    parts += [", ".join(f"`{name}` ({each.short})" for name, each in SCRIPTS.items()) + ".\n\n"]
    lines = [_row(flag, row, ", ".join(_owners(owners))) for flag, (owners, row) in FLAGS.items()]
    parts += ["| flag | scripts | default | fate | recipe | |\n|---|---|---|---|---|---|\n", "\n".join(lines), "\n"]
    lora, full = (summary.rows(name) for name in ("train_text_to_image_lora.py", "train_text_to_image.py"))
    both = {name: (row, "" if name in lora else "without lora") for name, row in {**full, **lora}.items()}
    parts += ["\n## Text-to-Image-Summary\n\n", SUMMARY, "| flag | script | default | fate | recipe | |\n"]
    parts += ["|---|---|---|---|---|---|\n", "\n".join(_row(name, *each) for name, each in both.items()), "\n"]
    parts += ["\n### create_dataset.py\n\n", DATASET, _table(summary.SET)]
    parts += ["\n## mindone's stable_diffusion_v2\n\n### train_dreambooth.py\n\n", MINDONE, _table(TRAIN)]
    parts += ["\nOf its last version (2025):\n\n", _table(TRAIN_LATER)]
    parts += ["\n### text_to_image.py\n\n", DRAWING, _table(DRAW), "\nOf its last version:\n\n", _table(DRAW_LATER)]
    return "".join(parts)


SUMMARY = """\
Run them in the folder that has `images/`:

    gesso generate_captions.py                 # gesso caption images --to image_captions.json …
    gesso create_dataset.py                    # gesso pack images datasets/Text2Image_example --to save_to_disk …
    gesso sh train_text_to_image_lora.sh

`generate_captions.py` has no flags; those of `gesso caption` may follow: `--model`, `--device`, `--batch`, `--prompt`.
`train_text_to_image_lora.py`, and `train_text_to_image.py`, which trains the weights themselves:

"""
DATASET = "The pictures of `images/` with the captions of `image_captions.json`:\n\n"
MINDONE = """\
The values of `--train_config` are those of flags; flags of the command win. Where none is named, and
`configs/train_config.json` is there, it counts. `gesso` needs no `--mode` and no environment.

A `.ckpt` of MindSpore or PyTorch holds weights alone. `model.like` lends the rest, from the Hub if need be;
`--model.like=FOLDER` names a folder of the same family.

"""
DRAWING = """\
It becomes `gesso generate`. `ckpt_path` may be the folder of a run, or of a checkpoint in it. `--like` is gesso's own.

"""
FATES = {
    "mapped": "in the recipe",
    "joined": "in the recipe",
    "harmless": "harmless",
    "differs": "differs",
    "unsupported": "stops",
}


def _owners(owners: tuple[str, ...]) -> list[str]:
    return ["all"] if set(owners) == set(ALL) else [each for each in ALL if each in owners]


def _table(rows: Mapping[str, Row]) -> str:
    lines = [_row(name, row) for name, row in rows.items()]
    return "\n".join(["| flag | default | fate | recipe or flag | |", "|---|---|---|---|---|", *lines]) + "\n"


def _row(name: str, row: Row, *owners: str) -> str:
    to = ", ".join(f"`{each.strip().replace('.0.', '.')}`" for each in row.to.split(",")) if row.to else ""
    fate = "in the command" if "-" in row.to or row.to.startswith("pack") else FATES[row.action]
    cells = [f"`{name}`", *owners, _default(row.default), fate, to, row.why]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: object) -> str:
    """A default, or the defaults of several scripts."""
    if isinstance(value, Mapping):
        each = [f"{name} {_default(of)}".strip() for name, of in value.items()]
        return "; ".join(each)
    words = {None: "", False: "off", True: "on"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(page(), end="")
