"""Flags of diffusers' scripts about the run itself: what is drawn, who is told, from where it goes on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from gesso.data.sources import text as texts
from gesso.errors import DataError
from gesso.importers import common
from gesso.importers.diffusers_flags import LEAST_DRAWN, Script
from gesso.importers.draft import Draft

KOHYA = "pytorch_lora_weights_kohya.safetensors"
PROMPTS = ("validation_prompts", "validation_prompt")


def pictures(draft: Draft) -> int | None:
    """How many pictures of the user's an epoch of gesso has; None where they cannot be counted."""
    values = draft.values
    count = common.pictures(values.get("instance_data_dir") or values.get("train_data_dir") or "")
    return count * max(int(values.get("repeats") or 1), 1) if count else None


def resume(draft: Draft) -> None:
    """The checkpoint to go on from: where the path says, or, as the script has it, by its last part in output_dir."""
    asked = draft.values["resume_from_checkpoint"]
    keep = draft.values["checkpoints_total_limit"]
    draft.put("save.keep", common.ALL_KEPT if keep is None else keep, "checkpoints_total_limit")
    if not asked or asked == "latest":
        return
    inside = Path(str(draft.settings["out"].value)) / Path(asked).name
    found = next((each for each in (Path(asked).expanduser(), inside) if each.is_dir()), None)
    if found is None:
        text = f"there is no such checkpoint, and no {inside.as_posix()}; leave it out, and the newest counts"
        draft.say("resume_from_checkpoint", "unsupported", text)
        return
    draft.checkpoint = found.as_posix()
    draft.reword("resume_from_checkpoint", f"goes on from {draft.checkpoint}")


def tell(draft: Draft, script: Script) -> None:
    """Who is told of the run: Weights & Biases, and the Hub of its result; and other programs of the LoRA."""
    if draft.values.get("output_kohya_format"):
        draft.kohya = (Path(str(draft.settings["out"].value)) / KOHYA).as_posix()
    values, asked = draft.values, str(draft.values["report_to"] or "tensorboard")
    if asked not in ("tensorboard", "wandb", "comet_ml", "all"):
        draft.say("report_to", "unsupported", "must be one of tensorboard, wandb, all")
    elif asked == "comet_ml":
        draft.say("report_to", "unsupported", "gesso does not write to Comet; use tensorboard or wandb")
    elif asked == "wandb" or (asked == "all" and find_spec("wandb") is not None):
        project = values.get("tracker_project_name") or script.project
        draft.put("track.wandb", project, "report_to", "tracker_project_name", note="TensorBoard is written too")
        if values["hub_token"]:
            text = (
                "W&B would be told it with the run, and the script stops too; set HF_TOKEN or log in, and leave it out"
            )
            draft.say("hub_token", "unsupported", text)
    else:
        draft.say("report_to", "harmless", "TensorBoard is always written")
    draft.say("tracker_project_name", "harmless", "it does nothing without --report_to=wandb")
    if not values["push_to_hub"]:
        for name in ("push_to_hub", "hub_model_id"):
            draft.say(name, "harmless", "nothing is uploaded without --push_to_hub")
    elif "/" not in str(values["hub_model_id"] or ""):
        text = "to whom? give --hub_model_id=OWNER/NAME; or leave it out, and `gesso export` uploads when you like it"
        draft.say("push_to_hub", "unsupported", text)
        draft.say("hub_model_id", "unsupported", "must be OWNER/NAME")
    else:
        note = "private, where it is not there yet; --hub.private=false makes it public"
        draft.put("hub.push", values["hub_model_id"], "push_to_hub", "hub_model_id", note=note)


def _prompts(draft: Draft) -> str:
    """sample.prompts and what goes with them; the flag that gave them, or "" where nothing is to be drawn."""
    values = draft.values
    if values.get("validation_prompts_dir"):
        draft.put("sample.prompts_file", values["validation_prompts_dir"], "validation_prompts_dir")
        if place := values["validation_negative_prompts_dir"]:
            _negative(draft, Path(str(place)).expanduser())
        return "validation_prompts_dir"
    name = next(each for each in (*PROMPTS, "validation_prompts_dir") if each in draft.rows)
    if not values[name]:
        draft.say("validation_negative_prompts_dir", "harmless", f"it does nothing without --{name}")
        return ""
    draft.put("sample.prompts", values[name] if isinstance(values[name], list) else [values[name]], name)
    return name


def _negative(draft: Draft, path: Path) -> None:
    name = "validation_negative_prompts_dir"
    try:
        first = next((line.strip() for line in texts.read(path, str(path)).splitlines() if line.strip()), "")
    except DataError as error:
        draft.say(name, "unsupported", f"{path}: {error.what}; write there what is not to be drawn, or leave it out")
        return
    draft.put("sample.negative", first, name, note="the first line")


def samples(draft: Draft, script: Script) -> None:
    values = draft.values
    drawn = _prompts(draft)
    if not drawn:
        for each in (*PROMPTS, *LEAST_DRAWN, "validation_scheduler"):
            draft.say(each, "harmless", "it does nothing without prompts to draw")
        return
    common.least(draft, LEAST_DRAWN)
    first, count = values["seed"] or 0, values.get("num_validation_images") or 1
    draft.put("sample.seeds", list(range(first, first + max(int(count), 1))), "num_validation_images")
    draft.put("sample.steps", script.sampling_steps)
    draft.put("sample.guidance", script.guidance)
    if script.solver and not common.is_edm(str(values["pretrained_model_name_or_path"])):
        draft.put("sample.scheduler", script.solver)
    if "validation_epochs" in draft.rows:
        epochs, rows, note = values["validation_epochs"], pictures(draft), ""
        if values.get("with_prior_preservation") and rows:
            epochs *= max(rows, values["num_class_images"]) / rows
            note = "the script's epoch counts the larger set of pictures"
        draft.put("sample.every_epochs", epochs, "validation_epochs", note=note)
