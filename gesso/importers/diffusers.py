"""Commands of the training scripts that diffusers and mindone share: flags that act together, made into a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gesso.importers import common
from gesso.importers.diffusers_flags import SCRIPTS, Script, rows
from gesso.importers.draft import Draft, Imported
from gesso.importers.shell import Command, flags

PRECISIONS = {"no": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
EMA_DECAY = 0.9999
OFFSET_NOISE = 0.1
CLASS_STEPS = 50


def translate(command: Command) -> Imported:
    """The recipe that does what the command would have done."""
    script, table = SCRIPTS[command.script], rows(command.script)
    draft = Draft(command.script, table, dashes=True)
    given = flags(command.words, table)
    draft.take(given)
    _foreign(draft, given)
    draft.defaults()
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
    _samples(draft, script)
    return draft.finish()


def _foreign(draft: Draft, given: dict[str, Any]) -> None:
    """Flags that another of the scripts has: the script would stop too, but its own words say less."""
    for name in given:
        others = [each for each in SCRIPTS if name in rows(each)]
        if name not in draft.rows and others:
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
            draft.say("rank", "harmless", "lora_rank is given too and counts")
        draft.put("adapter.rank", values[rank], rank)
    _words(draft, script)
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


def _data(draft: Draft) -> None:
    values = draft.values
    named = [each for each in ("dataset_name", "train_data_dir", "instance_data_dir") if values.get(each)]
    if not named:
        wanted = " or ".join(f"--{each}" for each in ("instance_data_dir", "train_data_dir") if each in draft.rows)
        draft.stop("where are the pictures? give " + wanted, wanted)
        return
    if named[1:] and values.get("dataset_name") == "imagefolder":
        # A builder's name beside a folder means the folder; a real data set would hide it.
        draft.say("dataset_name", "harmless", "gesso sees by itself what a folder holds")
        named = named[1:]
    chosen = named[0]
    for other in named[1:]:
        draft.say(other, "unsupported", f"is given beside --{chosen}; leave one of the two out")
    path = values[chosen]
    if chosen == "dataset_name" and not Path(path).expanduser().is_dir():
        draft.say(
            chosen,
            "unsupported",
            f"gesso reads folders on this machine, and {path} is none; save its pictures into a folder with "
            "metadata.jsonl, and give --train_data_dir",
        )
        return
    common.folder(draft, 0, path, chosen)
    if "instance_prompt" not in draft.rows:
        return
    if not values["instance_prompt"]:
        draft.stop("what is on the pictures? give --instance_prompt", "--instance_prompt")
    else:
        draft.put("data.0.prompt", values["instance_prompt"], "instance_prompt", note=draft.rows["instance_prompt"].why)


def _prior(draft: Draft, script: Script) -> None:
    if not script.dreambooth:
        return
    values = draft.values
    others = ("class_prompt", "class_data_dir", "prior_loss_weight", "num_class_images")
    if not values["with_prior_preservation"]:
        for name in ("with_prior_preservation", *others):
            draft.say(name, "harmless", "it does nothing without --with_prior_preservation")
        return
    if not values["class_prompt"]:
        draft.stop("prior preservation needs the class in words; give --class_prompt", "--class_prompt")
        return
    draft.put("prior.prompt", values["class_prompt"], "class_prompt", "with_prior_preservation")
    draft.put("prior.weight", values["prior_loss_weight"], "prior_loss_weight")
    draft.put("prior.pictures", values["num_class_images"], "num_class_images")
    draft.put("prior.sampling_steps", CLASS_STEPS)
    draft.put("prior.guidance", script.guidance)
    folder = values["class_data_dir"]
    if folder and common.pictures(folder):
        draft.put("prior.path", folder, "class_data_dir")
    else:
        draft.say(
            "class_data_dir", "differs", "no pictures are there yet; gesso draws them into class/ of the run folder"
        )


def _length(draft: Draft, total: int) -> int | None:
    """train.steps, or train.epochs; returns the steps where they can be counted."""
    values = draft.values
    if values["max_train_steps"] is not None:
        draft.put("train.steps", values["max_train_steps"], "max_train_steps")
        draft.say("num_train_epochs", "harmless", "max_train_steps wins over it")
        return int(values["max_train_steps"])
    epochs, rows = values["num_train_epochs"], _rows(draft)
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


def _rows(draft: Draft) -> int | None:
    """How many pictures of the user's an epoch of gesso has; None where they cannot be counted."""
    values = draft.values
    count = common.pictures(values.get("instance_data_dir") or values.get("train_data_dir") or "")
    return count * max(int(values.get("repeats") or 1), 1) if count else None


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
    asked = draft.values["mixed_precision"] or launcher
    if asked and asked not in PRECISIONS:
        draft.say("mixed_precision", "unsupported", "must be one of no, fp16, bf16")
        if not draft.values["mixed_precision"]:
            draft.stop(f"the launcher's --mixed_precision is {asked}; use no, fp16 or bf16", "--mixed_precision")
    elif asked:
        note = "" if draft.values["mixed_precision"] else "--mixed_precision of the launcher"
        draft.put("train.precision", PRECISIONS[asked], "mixed_precision", note=note)


def _samples(draft: Draft, script: Script) -> None:
    values = draft.values
    name = "validation_prompts" if "validation_prompts" in draft.rows else "validation_prompt"
    keep = values["checkpoints_total_limit"]
    draft.put("save.keep", common.ALL_KEPT if keep is None else keep, "checkpoints_total_limit")
    if not values["center_crop"]:
        draft.put("train.crop", "random", "center_crop")
    else:
        draft.put("train.crop", "center", "center_crop")
    names = ("num_validation_images", "validation_epochs", "validation_steps", "validation_scheduler")
    if not values[name]:
        for each in (name, *names):
            draft.say(each, "harmless", f"it does nothing without --{name}")
        return
    prompts = values[name] if isinstance(values[name], list) else [values[name]]
    draft.put("sample.prompts", prompts, name)
    first, count = values["seed"] or 0, values.get("num_validation_images") or 1
    draft.put("sample.seeds", list(range(first, first + max(int(count), 1))), "num_validation_images")
    draft.put("sample.steps", script.sampling_steps)
    draft.put("sample.guidance", script.guidance)
    if script.solver and not common.is_edm(str(values["pretrained_model_name_or_path"])):
        draft.put("sample.scheduler", script.solver)
    if "validation_epochs" in draft.rows:
        epochs, rows, note = values["validation_epochs"], _rows(draft), ""
        if values.get("with_prior_preservation") and rows:
            epochs *= max(rows, values["num_class_images"]) / rows
            note = "the script's epoch counts the larger set of pictures"
        draft.put("sample.every_epochs", epochs, "validation_epochs", note=note)
