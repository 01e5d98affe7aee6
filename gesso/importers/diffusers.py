"""Commands of the training scripts that diffusers and mindone share: flags that act together, made into a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from gesso.importers import common, summary
from gesso.importers.diffusers_flags import LEAST, MINDONE, SCRIPTS, Script, rows
from gesso.importers.diffusers_run import pictures, resume, samples, tell
from gesso.importers.draft import Draft, Imported
from gesso.importers.shell import Command, flags, spoken

PRECISIONS = {"no": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
EMA_DECAY = 0.9999
OFFSET_NOISE = 0.1
CLASS_STEPS = 50


def translate(command: Command) -> Imported:
    """The recipe that does what the command would have done."""
    script, table = SCRIPTS[command.script], rows(command.script)
    if command.script in summary.SCRIPTS and spoken(command.words) & set(summary.ADDED):
        script, table = summary.SCRIPTS[command.script], summary.rows(command.script)
    draft = Draft(command.script, table, dashes=True)
    draft.take(draft.own(flags(command.words, table)))
    _foreign(draft, script)
    draft.defaults()
    common.least(draft, LEAST)
    for flag in command.stops:
        draft.stop(f"gesso has no {flag[2:]}; leave it out of the launcher", flag)
    _method(draft, script)
    _data(draft)
    _prior(draft, script)
    total = common.batch(draft, "train_batch_size", "gradient_accumulation_steps", command.devices)
    steps = _length(draft, total)
    _rates(draft, script, steps, command.devices)
    _objective(draft)
    _precision(draft, command.precision)
    _resize(draft, script)
    samples(draft, script)
    resume(draft)
    tell(draft, script)
    return draft.finish()


def _foreign(draft: Draft, script: Script) -> None:
    """Flags that another of the scripts has: the script would stop too, but its own words say less."""
    if script.maker == summary.NAME:
        common.mixed(draft, summary.ADDED, "diffusers", rows(draft.source))
    for name in list(draft.given):
        others = [each for each in SCRIPTS if name in rows(each)]
        if name not in draft.rows and others and draft.source not in others:
            text = f"{draft.source} has no such flag, {others[0]} has; leave it out or run that script"
            draft.say(name, "unsupported", text)
            draft.reword(name, text)


def _method(draft: Draft, script: Script) -> None:
    values = draft.values
    if not values["pretrained_model_name_or_path"]:
        draft.stop("which model? give --pretrained_model_name_or_path", "--pretrained_model_name_or_path")
    if not script.lora:
        draft.put("adapter.kind", "none", note=f"{draft.source} trains the weights themselves")
    else:
        draft.put("adapter.kind", "dora" if values.get("use_dora") else "lora", "use_dora")
        rank = "lora_rank" if "lora_rank" in draft.given else "rank"
        if {"rank", "lora_rank"} <= set(draft.given):
            if values["rank"] != values["lora_rank"]:
                draft.say(
                    "lora_rank", "unsupported", f"is another name for --rank, which is {values['rank']}; give one"
                )
            draft.say("rank", "harmless", "lora_rank is given too, and says the same")
        draft.put("adapter.rank", values.get(rank, summary.RANK), rank)
    _words(draft, script)
    base = str(values["pretrained_model_name_or_path"])
    if values.get("tokenizer_name") in (base, f"{base.rstrip('/')}/tokenizer"):
        draft.forgive("tokenizer_name", "it is the model's own")
    if values.get("use_ema"):
        draft.put("optim.ema", EMA_DECAY, "use_ema")
    for name in ("use_ema", "use_dora"):
        draft.say(name, "harmless", "asks for nothing")


def _words(draft: Draft, script: Script) -> None:
    """Text encoders that learn."""
    values, early = draft.values, "pre_compute_text_embeddings"
    if values.get("train_text_encoder"):
        parts = ["unet", "text_encoder", *(["text_encoder_2"] if script.sdxl else [])]
        draft.put("model.train", parts, "train_text_encoder")
        if values.get(early):
            draft.say(early, "unsupported", "captions cannot be encoded beforehand while the text encoder learns")
    else:
        draft.say("train_text_encoder", "harmless", "asks for nothing")


FOLDERS = ("imagefolder", "webdataset")
"""Builders of the datasets library that read a folder: the folder is what counts."""


def _data(draft: Draft) -> None:
    values = draft.values
    _disk(draft)
    places = ("dataset_disk_path", "dataset_name", "train_data_dir", "instance_data_dir")
    named = [each for each in places if values.get(each)]
    if not named and values.get("dataset_from_disk"):
        return
    if not named:
        wanted = " or ".join(f"--{each}" for each in ("instance_data_dir", "train_data_dir") if each in draft.rows)
        draft.stop("where are the pictures? give " + wanted, wanted)
        return
    if named[1:] and values.get("dataset_name") in FOLDERS:
        # A builder's name beside a folder means the folder; a real data set would hide it.
        draft.say("dataset_name", "harmless", "gesso sees by itself what a folder holds")
        named.remove("dataset_name")
    chosen = named[0]
    for other in named[1:]:
        draft.say(other, "unsupported", f"is given beside --{chosen}; leave one of the two out")
    path = str(values[chosen])
    if chosen == "dataset_disk_path":
        draft.put("data.0.path", path, chosen, "dataset_from_disk")
        draft.put("data.0.format", "save_to_disk", "dataset_from_disk")
    elif chosen == "dataset_name" and not Path(path).expanduser().exists():
        _hub(draft, path)
    else:
        common.folder(draft, 0, path, chosen)
    if values.get("dataset_config_name") and "data.0.config" not in draft.settings:
        draft.say("dataset_config_name", "unsupported", "only a data set of the Hub has configurations; leave it out")
    if "instance_prompt" in draft.rows and not values["instance_prompt"]:
        draft.stop("what is on the pictures? give --instance_prompt", "--instance_prompt")
    elif "instance_prompt" in draft.rows:
        draft.put("data.0.prompt", values["instance_prompt"], "instance_prompt", note=draft.rows["instance_prompt"].why)


def _disk(draft: Draft) -> None:
    """A data set on this disk, of Text-to-Image-Summary's scripts."""
    values = draft.values
    if values.get("dataset_from_disk"):
        if not values["dataset_disk_path"]:
            draft.stop("where is the data set? give --dataset_disk_path", "--dataset_disk_path")
        for other in ("dataset_name", "train_data_dir"):
            draft.say(other, "harmless", "--dataset_from_disk wins over it")
            values[other] = None
    elif values.get("dataset_disk_path"):
        if values["dataset_name"] or values["train_data_dir"]:
            draft.say("dataset_disk_path", "harmless", "it is read with --dataset_from_disk alone")
        else:
            draft.say("dataset_disk_path", "unsupported", "add --dataset_from_disk, without which it is not read")
        values["dataset_disk_path"] = None
    draft.say("dataset_from_disk", "harmless", "asks for nothing")


def _hub(draft: Draft, name: str) -> None:
    """A data set of the Hub, by the name that the datasets library takes."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or name in FOLDERS:
        text = f"{name} is no folder on this machine, and no name of a Hub data set, such as user/name"
        draft.say("dataset_name", "unsupported", f"{text}; check it, or give --train_data_dir")
        return
    draft.put("data.0.path", f"hub:{name}", "dataset_name")
    if draft.values.get("dataset_config_name"):
        draft.put("data.0.config", draft.values["dataset_config_name"], "dataset_config_name")


def _prior(draft: Draft, script: Script) -> None:
    if not script.dreambooth:
        return
    values = draft.values
    others = ("class_prompt", "class_data_dir", "prior_loss_weight", "num_class_images")
    if not values["with_prior_preservation"]:
        for name in ("with_prior_preservation", *others):
            draft.say(name, "harmless", "it does nothing without --with_prior_preservation")
        return
    for name, what in (("class_prompt", "the class in words"), ("class_data_dir", "a folder of class pictures")):
        if not values[name]:
            draft.stop(f"prior preservation needs {what}; give --{name}", f"--{name}")
    if not values["class_prompt"] or not values["class_data_dir"]:
        return
    draft.put("prior.prompt", values["class_prompt"], "class_prompt", "with_prior_preservation")
    draft.put("prior.weight", values["prior_loss_weight"], "prior_loss_weight")
    draft.put("prior.pictures", values["num_class_images"], "num_class_images")
    draft.put("prior.sampling_steps", CLASS_STEPS)
    draft.put("prior.guidance", script.guidance)
    common.class_folder(draft, "class_data_dir")


def _length(draft: Draft, total: int) -> int | None:
    """train.steps, or train.epochs; returns the steps where they can be counted."""
    values = draft.values
    if values["max_train_steps"] is not None:
        draft.put("train.steps", values["max_train_steps"], "max_train_steps")
        draft.say("num_train_epochs", "harmless", "max_train_steps wins over it")
        return int(values["max_train_steps"])
    epochs, rows = values["num_train_epochs"], pictures(draft)
    if not values.get("with_prior_preservation"):
        draft.put("train.epochs", epochs, "num_train_epochs")
        return common.count_steps(epochs, rows, total) if rows else None
    if rows is None:
        text = "an epoch with class pictures cannot be counted here; give --max_train_steps"
        draft.say("num_train_epochs", "unsupported", text)
        if "num_train_epochs" not in draft.given:
            draft.stop(text, "--max_train_steps")
        return None
    # Their epoch is as long as the larger of the two sets.
    steps = common.count_steps(epochs, max(rows, values["num_class_images"]), total)
    draft.put("train.steps", steps, "num_train_epochs", note="the script's epoch counts the larger set of pictures")
    return steps


def _rates(draft: Draft, script: Script, steps: int | None, devices: int) -> None:
    values, lr = draft.values, draft.values["learning_rate"]
    names = ["learning_rate"]
    if values["scale_lr"]:
        lr *= values["gradient_accumulation_steps"] * values["train_batch_size"] * devices
        names += ["scale_lr"]
    else:
        draft.say("scale_lr", "harmless", "asks for nothing")
    draft.put("optim.lr", lr, *names, note="multiplied as scale_lr asks" if values["scale_lr"] else "")
    common.schedule(draft, "lr_scheduler", "lr_warmup_steps", steps)
    warm = draft.settings.get("optim.warmup")
    if warm and not warm.names and steps is not None and warm.value >= steps and "--optim.warmup" not in draft.given:
        text = f"is {warm.value} by default, and the run has {steps} steps; give fewer, such as --lr_warmup_steps=0"
        draft.stop(text, "--lr_warmup_steps")
    if script.short in ("XL", "XL-L") and values["gradient_accumulation_steps"] > 1:
        note = "in optimiser steps; the script would stretch the schedule by the accumulation"
        draft.say("lr_scheduler", "differs", note)
    _optimizer(draft)
    clip = values["max_grad_norm"]
    draft.put("optim.clip", clip, "max_grad_norm", note="" if clip else "0 is no clipping; the script would not learn")


def _optimizer(draft: Draft) -> None:
    values = draft.values
    name = str(values.get("optimizer") or "AdamW").lower()
    if name not in ("adamw", "prodigy"):
        draft.say("optimizer", "unsupported", "must be AdamW or prodigy")
        return
    if name == "prodigy":
        draft.put("optim.name", "prodigy", "optimizer")
        draft.say("use_8bit_adam", "harmless", "it is for AdamW, and prodigy is chosen")
    else:
        draft.put("optim.name", "adamw_8bit" if values["use_8bit_adam"] else "adamw", "optimizer", "use_8bit_adam")
    draft.put("optim.betas", [values["adam_beta1"], values["adam_beta2"]], "adam_beta1", "adam_beta2")
    if "text_encoder_lr" not in draft.rows:
        return
    decay = "adam_weight_decay_text_encoder"
    draft.put("optim.text_encoder_weight_decay", values[decay], decay)
    if name == "prodigy":
        draft.say("text_encoder_lr", "harmless", "prodigy has one step size for all that learns")
    else:
        draft.put("optim.text_encoder_lr", values["text_encoder_lr"], "text_encoder_lr")


def _objective(draft: Draft) -> None:
    values = draft.values
    if "snr_gamma" in draft.rows:
        common.min_snr(draft, "snr_gamma")
    if values.get("offset_noise"):
        draft.put("objective.noise_offset", OFFSET_NOISE, "offset_noise")
    draft.say("offset_noise", "harmless", "asks for nothing")
    edm = "do_edm_style_training"
    if values.get(edm) and common.is_edm(str(values["pretrained_model_name_or_path"])):
        draft.say(edm, "harmless", "this model is trained by EDM anyway")
    elif values.get(edm):
        draft.put("objective.edm_style", True, edm)
    draft.say(edm, "harmless", "asks for nothing")
    if "timestep_bias_strategy" in draft.rows:
        _times(draft)


def _times(draft: Draft) -> None:
    strategy, values = draft.values["timestep_bias_strategy"], draft.values
    parts = {part: f"timestep_bias_{part}" for part in ("strategy", "multiplier", "begin", "end", "portion")}
    if values[parts["multiplier"]] <= 0:
        draft.say(parts["multiplier"], "unsupported", f"is {values[parts['multiplier']]}, must be above 0")
    if strategy not in ("none", "earlier", "later", "range"):
        draft.say(parts["strategy"], "unsupported", "must be one of earlier, later, range, none")
    elif strategy != "none" and values[parts["multiplier"]] != 1:
        draft.put("objective.times", strategy, parts["strategy"])
        for part in ("multiplier", "begin", "end", "portion"):
            draft.put(f"objective.times_{part}", values[parts[part]], parts[part])
        return
    for name in parts.values():
        draft.say(name, "harmless", "it does nothing without a strategy and a multiplier other than 1")


def _precision(draft: Draft, launcher: str) -> None:
    of_class = draft.values.get("prior_generation_precision")
    if of_class and of_class not in PRECISIONS:
        draft.say("prior_generation_precision", "unsupported", "must be one of no, fp32, fp16, bf16")
    draft.say("prior_generation_precision", "harmless", "class pictures are drawn in train.precision")
    asked = draft.values["mixed_precision"] or launcher
    if asked and asked not in PRECISIONS:
        draft.say("mixed_precision", "unsupported", "must be one of no, fp16, bf16")
        if not draft.values["mixed_precision"]:
            draft.stop(f"the launcher's --mixed_precision is {asked}; use no, fp16 or bf16", "--mixed_precision")
    elif asked:
        note = "" if draft.values["mixed_precision"] else "--mixed_precision of the launcher"
        draft.put("train.precision", PRECISIONS[asked], "mixed_precision", note=note)
    else:
        draft.put("train.precision", "fp32", note="as in the script where neither flag nor launcher names another")


def _resize(draft: Draft, script: Script) -> None:
    """How a picture is made to fit."""
    draft.put("train.crop", "center" if draft.values["center_crop"] else "random", "center_crop")
    mark = next((name for name in MINDONE if draft.given.get(name)), "")
    kind = script.interpolation or ("bilinear" if mark else "")
    if kind and "image_interpolation_mode" not in draft.given:
        whose = "mindone's scripts" if mark else f"{draft.source} of {script.maker}"
        draft.put("train.interpolation", kind, note=f"{whose} knows no other" if not mark else f"{whose} know no other")
