"""What a user may call a model, and the diffusers folder that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gesso.errors import NetworkError, RecipeError, StorageError
from gesso.schema import ObjectiveTable

LORA = "pytorch_lora_weights.safetensors"
WANTED = ("model_index.json", "README.md", "*/*.json", "*/*.txt", "*/*.safetensors")
UNWANTED = ("safety_checker/*", "*.fp16.*", "*.bf16.*", "*.non_ema.*", "*/openvino*", "*/flax*")
"""What is taken of a Hub model, and what of that is not: one copy of the weights, and never a pickle."""
WHOLE = "fetch or export the model again, or use another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model by name: the pipeline folder, and the LoRA file on top of it when the name means one."""

    name: str
    folder: Path
    lora: Path | None = None
    checkpoint: Path | None = None
    """A checkpoint folder whose fully trained parts stand in for the folder's."""
    scheduler: Mapping[str, object] = field(default_factory=dict)
    """What the run changed in the folder's scheduler configuration."""

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component, from its JSON file."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.folder / component / name)

    @property
    def pipeline(self) -> str:
        return str(wanted(self.folder / "model_index.json", "_class_name"))


def resolve(name: str, revision: str = "") -> ModelSource:
    """The model that `name` means: "tiny", a pipeline folder, a run or checkpoint folder, a LoRA file, or a Hub id."""
    if name == "tiny":
        return ModelSource(name=name, folder=Path(str(files("gesso.demo") / "assets" / "tiny")))
    path = Path(name).expanduser()
    if path.is_file():
        return _file(name, path)
    if (path / "model_index.json").is_file():
        return ModelSource(name=name, folder=path)
    if path.is_dir():
        return _run_folder(name, path)
    if looks_like_hub_id(name):
        return ModelSource(name=name, folder=_from_hub(name, revision))
    raise RecipeError(
        f'there is no model "{name}"',
        todo='give "tiny", the path of a diffusers folder or of a run, or a Hub id such as "owner/name"',
    )


def whole(source: ModelSource) -> ModelSource:
    """The same source, or RecipeError where training, which starts from a folder, would leave some of it out."""
    if source.lora or source.checkpoint:
        kind = "a LoRA" if source.lora else "a checkpoint"
        raise RecipeError(
            f"{source.name} is {kind} on top of {source.folder.name}, and training starts from a whole model",
            todo="set model.base to a diffusers folder, or to a finished run of full fine-tuning",
        )
    return source


def looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _file(name: str, path: Path) -> ModelSource:
    if path.name == LORA:
        return _run_folder(name, path.parent)
    raise RecipeError(
        f"{name} is a single file, and gesso reads models from diffusers folders so far",
        todo="convert it with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)",
    )


def _run_folder(name: str, path: Path) -> ModelSource:
    """A run, or a checkpoint in one: its base comes from the run's effective recipe."""
    run = path.parent if path.name.startswith("checkpoint-") else path
    effective = run / "effective.json"
    lora = path / LORA
    trained = lora.is_file() or (path != run and any(path.glob("*/config.json")))
    if not effective.is_file() or not trained:
        raise RecipeError(
            f"{name} is a folder, but holds neither a model (model_index.json) nor the result of a run",
            todo="name a diffusers folder, a finished run, or a checkpoint folder inside a run",
        )
    base = resolve(str(_chosen(effective, "model.base")), str(_chosen(effective, "model.revision")))
    own = {name: _chosen(effective, f"objective.{name}") for name in ("prediction", "zero_snr")}
    try:
        table = ObjectiveTable(**own)
    except ValidationError as error:
        raise RecipeError(f"the run's objective cannot be: {own}", where=str(effective)) from error
    return ModelSource(
        name=name,
        folder=base.folder,
        lora=lora if lora.is_file() else None,
        checkpoint=None if lora.is_file() else path,
        scheduler=scheduler_changes(table),
    )


def _chosen(effective: Path, key: str) -> Any:
    """A value of a run's recipe."""
    found = wanted(effective, key)
    if not isinstance(found, dict) or "value" not in found:
        raise RecipeError(f'"{key}" has no value', where=str(effective), todo=WHOLE)
    return found["value"]


def scheduler_changes(table: ObjectiveTable) -> dict[str, object]:
    """What an objective changes in the model's scheduler: a model must be drawn with as it was trained."""
    changes = dict[str, object]()
    if table.prediction != "auto":
        changes["prediction_type"] = table.prediction
    if table.zero_snr:
        # PNDM, the usual scheduler of SD 1.x, neither knows the rescaled schedule nor starts at its last timestep.
        changes |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif table.zero_snr is False:
        changes["rescale_betas_zero_snr"] = False
    return changes


def _from_hub(name: str, revision: str) -> Path:
    """The folder of a Hub model, downloaded once; the only place that contacts a host, and only the one named."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
            )
        )
    except GatedRepoError as error:
        raise NetworkError(
            f"{name} is gated", todo="accept its licence on its page, then set HF_TOKEN to a token of your account"
        ) from error
    except RepositoryNotFoundError as error:
        raise NetworkError(f"there is no model {name} on the Hub, or it is private", todo="check the name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise NetworkError(
            f"{name} could not be fetched, and no copy is on this machine",
            todo="check the connection, or give the path of a folder that holds the model",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RecipeError where there is none, StorageError where the disk refuses."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecipeError(f"{path.name} is missing", where=str(path.parent), todo="is the model whole?") from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"this is not JSON: {error}", where=str(path), todo=WHOLE) from error
    if not isinstance(found, dict):
        raise RecipeError("holds no JSON object", where=str(path), todo=WHOLE)
    return found


def wanted(path: Path, key: str) -> Any:
    """One value of a JSON file that a model cannot do without."""
    found = read_json(path)
    if key not in found:
        raise RecipeError(f"the model's configuration lacks {key}", where=str(path), todo=WHOLE)
    return found[key]
