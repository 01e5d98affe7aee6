"""Commands and configuration files of kohya's sd-scripts, made into a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gesso.errors import RecipeError
from gesso.importers import common, kohya_adapter, kohya_data, kohya_prompts, optimizers
from gesso.importers.draft import Draft, Imported
from gesso.importers.files import flat, mapping, read
from gesso.importers.kohya_flags import OTHERS, SCRIPTS, SET_FILE, Script, rows
from gesso.importers.shell import Command, flags

__all__ = ["OTHERS", "SCRIPTS", "from_toml", "translate"]


def translate(command: Command) -> Imported:
    """The recipe that does what the command would have done."""
    script = SCRIPTS[command.script]
    given = flags(command.words, rows(script))
    return _translate(command.script, given, devices=command.devices, stops=command.stops)


def from_toml(path: Path, script: str = "") -> Imported:
    """The recipe of a file for `--config_file`; `script` says which script it is for, where its keys do not."""
    content = mapping(read(path), str(path))
    if "datasets" in content:
        raise RecipeError(
            "this is a data set file, which names pictures but no model",
            where=str(path),
            todo="import the command, or the config file, that names it by dataset_config",
        )
    given = _unnested(content)
    if script and script not in SCRIPTS:
        raise RecipeError(f"there is no script {script}", todo=f"--script is one of {', '.join(SCRIPTS)}")
    return _translate(script or _guessed(given, path), given, source=str(path))


def _unnested(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of all sections; sections of such a file mean nothing."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found.update(value if isinstance(value, dict) else {key: value})
    return found


def _guessed(given: Mapping[str, Any], path: Path) -> str:
    """The script that the keys of a file belong to."""
    if not {"pretrained_model_name_or_path", "network_module", "learning_rate"} & set(given):
        raise RecipeError("it holds no key of kohya's scripts", where=str(path), todo="is it the right file?")
    if "token_string" in given:
        method = "words"
    elif {"network_module", "network_dim", "unet_lr"} & set(given):
        method = "lora"
    else:
        raise RecipeError(
            "its keys do not say which script it is for",
            where=str(path),
            todo="add --script train_db.py, fine_tune.py or sdxl_train.py",
        )
    sdxl = "xl" in str(given.get("pretrained_model_name_or_path", "")).lower()
    return next(name for name, each in SCRIPTS.items() if (each.method, each.sdxl) == (method, sdxl))


def _translate(
    name: str, given: dict[str, Any], *, devices: int = 1, stops: tuple[str, ...] = (), source: str = ""
) -> Imported:
    script = SCRIPTS[name]
    table = rows(script)
    given = {**_config(given), **given}
    sets = _sets(given)
    if sets:
        table |= {f"{level}.{key}": row for level in kohya_data.LEVELS for key, row in SET_FILE.items()}
    draft = Draft(source or name, table, dashes=not source, program=name)
    draft.take(given)
    draft.take(sets)
    for read_too in ("config_file", "dataset_config"):
        draft.say(read_too, "harmless", "it is read, and its keys are listed here")
    draft.defaults()
    for flag in stops:
        draft.stop(f"gesso has no {flag[2:]}; leave it out of the launcher", flag)
    if source:
        draft.say("pretrained_model_name_or_path", "differs", f"read as a file for {name}; --script names another")
    if not draft.values["pretrained_model_name_or_path"]:
        draft.stop("which model? give pretrained_model_name_or_path", "pretrained_model_name_or_path")
    parts = _parts(draft, script)
    kohya_adapter.put(draft, script)
    found = kohya_data.put(draft)
    total, pace = _batch(draft, found, devices)
    steps = _length(draft, found.rows, total, pace)
    _rates(draft, script, parts, steps, pace)
    _objective(draft)
    _rest(draft, pace)
    kohya_prompts.put(draft)
    if found.regular:
        draft.put("prior.weight", draft.values["prior_loss_weight"], "prior_loss_weight")
    draft.say("prior_loss_weight", "harmless", "it does nothing without class pictures")
    return draft.finish()


def _config(given: Mapping[str, Any]) -> dict[str, Any]:
    path = given.get("config_file")
    if not isinstance(path, str):
        return {}
    # The script adds the ending where it is left out.
    file = Path(path if path.endswith(".toml") else f"{path}.toml").expanduser()
    return _unnested(mapping(read(file), str(file)))


def _sets(given: Mapping[str, Any]) -> dict[str, Any]:
    path = given.get("dataset_config")
    if not isinstance(path, str):
        return {}
    content = mapping(read(Path(path).expanduser()), path)
    if not isinstance(content.get("datasets"), list):
        raise RecipeError("it has no [[datasets]]", where=path, todo="is it the data set file?")
    return dict(flat(content))


def _parts(draft: Draft, script: Script) -> list[str]:
    """model.train: what learns."""
    values = draft.values
    encoders = ["text_encoder", "text_encoder_2"] if script.sdxl else ["text_encoder"]
    only, words = "network_train_unet_only", "network_train_text_encoder_only"
    switches = tuple(name for name in (only, words, "train_text_encoder") if values.get(name))
    stop = values.get("stop_text_encoder_training")
    for name in (only, words, "train_text_encoder"):
        draft.say(name, "harmless", "it is so anyway")
    if stop is not None and stop >= 0:
        text = "gesso's text encoder learns from beginning to end, or not at all (below 0)"
        draft.say("stop_text_encoder_training", "unsupported", text)
    if values.get(only) and values.get(words):
        draft.say(words, "unsupported", f"contradicts {only}; leave one of the two out")
    learns = bool(script.text or values.get("train_text_encoder")) and not values.get(only) and (stop is None)
    rates = _text_rates(draft, script)
    resting = tuple(name for _, name in rates if name)
    chosen = [each for each, (rate, _) in zip(encoders, rates, strict=True) if learns and rate != 0]
    unet = [] if values.get(words) else ["unet"]
    if script.method == "words":
        return []
    draft.put("model.train", [*unet, *chosen] or ["unet"], *switches, "stop_text_encoder_training", *resting)
    return [*unet, *chosen]


def _text_rates(draft: Draft, script: Script) -> list[tuple[float | None, str]]:
    """(rate or None, the key that says it) of each text encoder."""
    values = draft.values
    if values.get("text_encoder_lr"):
        first, *more = values["text_encoder_lr"]
        second = more[0] if more else first
        rates = [(first, "text_encoder_lr"), (second, "text_encoder_lr")]
    else:
        name = "learning_rate_te1" if script.sdxl else "learning_rate_te"
        rates = [(values.get(name), name if name in draft.given else "")]
        rates += [(values.get("learning_rate_te2"), "learning_rate_te2" if "learning_rate_te2" in draft.given else "")]
    for name in ("text_encoder_lr", "learning_rate_te", "learning_rate_te1", "learning_rate_te2"):
        draft.say(name, "harmless", "no text encoder that it could be for learns")
    return rates[: 2 if script.sdxl else 1]


def _batch(draft: Draft, found: kohya_data.Pictures, devices: int) -> tuple[int, int]:
    """(train.batch, how many of kohya's steps are one of gesso's)."""
    size, name = found.batch
    name = name or "train_batch_size"
    draft.values[name] = size or draft.values["train_batch_size"]
    total = common.batch(draft, name, "gradient_accumulation_steps", devices)
    if not found.regular:
        return total, 1
    # Kohya draws both kinds into one batch, gesso adds as many class pictures to it.
    even = total % 2 == 0
    half = total // 2 if even else total
    note = "half of kohya's batch are class pictures; gesso adds as many to train.batch"
    if not even:
        note = "two of kohya's steps, one with class pictures, are one of gesso's, which has both; steps are halved"
    draft.put("train.batch", half, name, "gradient_accumulation_steps", note=note)
    micro = draft.settings.pop("train.micro_batch", None)
    if micro is not None and half > 1:
        fitting = max(each for each in range(1, half + 1) if half % each == 0 and each <= max(micro.value // 2, 1))
        draft.put("train.micro_batch", fitting, *micro.names)
    return half, 1 if even else 2


def _length(draft: Draft, count: int | None, total: int, pace: int) -> int | None:
    epochs, steps = draft.values["max_train_epochs"], draft.values["max_train_steps"]
    if epochs is None:
        counted = math.ceil(int(steps) / pace)
        draft.put("train.steps", counted, "max_train_steps")
        return counted
    draft.put("train.epochs", epochs, "max_train_epochs")
    draft.say("max_train_steps", "harmless", "max_train_epochs wins over it")
    return common.count_steps(epochs, count, total) if count else None


def _rates(draft: Draft, script: Script, parts: list[str], steps: int | None, pace: int) -> None:
    values = draft.values
    _optimizer(draft)
    unet = "unet_lr" if values.get("unet_lr") is not None else "learning_rate"
    base = values[unet]
    if "unet" in parts or not parts:
        draft.put("optim.lr", base, unet)
    else:
        draft.put("optim.lr", values["learning_rate"], "learning_rate")
        draft.say("unet_lr", "harmless", "the denoiser rests")
    for part, (rate, name) in zip(("text_encoder", "text_encoder_2"), _text_rates(draft, script), strict=False):
        if part in parts:
            rate = values["learning_rate"] if rate is None else rate
            draft.put(f"optim.{part}_lr", rate, name or "learning_rate")
    draft.say("learning_rate", "harmless", "unet_lr and text_encoder_lr win over it")
    warmup = values["lr_warmup_steps"]
    if warmup and warmup >= 1:
        values["lr_warmup_steps"] = math.ceil(warmup / pace)
    common.schedule(draft, "lr_scheduler", "lr_warmup_steps", steps)


def _optimizer(draft: Draft) -> None:
    values = draft.values
    key, name = "optimizer_type", values["optimizer_type"] or "AdamW"
    for flag, other in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if values[flag] and key in draft.given and name.lower() != other.lower():
            draft.say(flag, "unsupported", f"contradicts optimizer_type {name}; leave one of the two out")
        elif values[flag]:
            key, name = flag, other
        draft.say(flag, "harmless", "optimizer_type says the same, or it asks for nothing")
    if key != "optimizer_type":
        draft.say("optimizer_type", "harmless", f"{key} says the same")
    pairs = (each.partition("=") for each in values["optimizer_args"] or ())
    arguments = {option.strip(): ("optimizer_args", value.strip()) for option, _, value in pairs}
    draft.say("optimizer_args", "harmless", "asks for nothing")
    optimizers.choose(draft, name, key, arguments)


def _objective(draft: Draft) -> None:
    values = draft.values
    if values["v_parameterization"]:
        draft.put("objective.prediction", "v_prediction", "v_parameterization")
    if values["zero_terminal_snr"]:
        draft.put("objective.zero_snr", True, "zero_terminal_snr")
    common.min_snr(draft, "min_snr_gamma")
    if values["debiased_estimation_loss"]:
        if "objective.weighting" in draft.settings:
            draft.say("debiased_estimation_loss", "unsupported", "gesso has one weighting; leave min_snr_gamma out")
        draft.put("objective.weighting", "debiased", "debiased_estimation_loss")
    levels = values["multires_noise_iterations"]
    if levels and levels > 1:
        draft.put("objective.pyramid_levels", min(levels, 10), "multires_noise_iterations")
        draft.put("objective.pyramid_noise", values["multires_noise_discount"], "multires_noise_discount")
    begin, end = values["min_timestep"] or 0, values["max_timestep"] or 1000
    if (begin, end) != (0, 1000):
        draft.put("objective.times", "only", "min_timestep", "max_timestep")
        draft.put("objective.times_begin", begin, "min_timestep")
        draft.put("objective.times_end", end, "max_timestep")
    for name in (
        "v_parameterization", "zero_terminal_snr", "debiased_estimation_loss", "multires_noise_iterations",
        "multires_noise_discount", "min_timestep", "max_timestep",
    ):  # fmt: skip
        draft.say(name, "harmless", "asks for nothing")


def _rest(draft: Draft, pace: int) -> None:
    values = draft.values
    named = [str(values[each]) for each in ("output_dir", "output_name") if values[each]]
    if named:
        draft.put("out", PurePosixPath(*named).as_posix(), "output_dir", "output_name")
    last: Any = common.ALL_KEPT
    for table, epochs, steps in (
        ("save", "save_every_n_epochs", "save_every_n_steps"),
        ("sample", "sample_every_n_epochs", "sample_every_n_steps"),
        ("validate", "validate_every_n_epochs", "validate_every_n_steps"),
    ):
        if values[steps]:
            draft.put(f"{table}.every", math.ceil(values[steps] / pace), steps)
            draft.say(epochs, "harmless", f"{steps} counts")
        elif values[epochs]:
            draft.put(f"{table}.every_epochs", values[epochs], epochs)
        elif table == "save":
            draft.put("save.every", 0, note="sd-scripts saves at the end alone unless told otherwise")
        for name in (epochs, steps):
            draft.say(name, "harmless", "asks for nothing")
    # As many as lie within the last N epochs, or steps and the one before.
    names = ("save_last_n_epochs", "save_last_n_steps")
    if values["save_every_n_epochs"] and values[names[0]]:
        last = values[names[0]]
    elif values["save_every_n_steps"] and values[names[1]]:
        last = values[names[1]] // values["save_every_n_steps"] + 1
    if values["save_every_n_epochs"] or values["save_every_n_steps"]:
        draft.put("save.keep", last, *names)
    for name in names:
        draft.say(name, "harmless", "nothing is saved that it could count")
