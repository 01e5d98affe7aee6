"""What a user may call a model, and the diffusers folder that it means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from gesso import base_file
from gesso.base_file import Progress
from gesso.errors import NetworkError, RecipeError, StorageError
from gesso.families import find
from gesso.formats import adapter, embeddings, mindspore_names, tensors
from gesso.formats.single_file import NAMES
from gesso.schema import Model, ObjectiveTable

LORA = "pytorch_lora_weights.safetensors"
WANTED = ("model_index.json", "README.md", "*/*.json", "*/*.txt", "*/*.safetensors")
UNWANTED = ("safety_checker/*", "*.fp16.*", "*.bf16.*", "*.non_ema.*", "*/openvino*", "*/flax*")
"""What is taken of a Hub model, and what of that is not: one copy of the weights, and never a pickle."""
LENT = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model")
"""What is taken of a Hub model that lends its configurations and tokenizers."""
WANTED_VAE = tuple(f"{place}{name}" for place in ("", "vae/") for name in ("config.json", "*.safetensors"))
"""What is taken of a Hub repository that is named as an autoencoder: of its root, and of a pipeline's part."""
WHOLE = "fetch or export the model again, or use another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model by name: the pipeline folder, and the LoRA file on top of it when the name means one."""

    name: str
    folder: Path
    lora: Path | None = None
    """The LoRA file on top of it, or the folder with adapters of another kind."""
    words: tuple[Path, ...] = ()
    """The files of learned words on top of it."""
    checkpoint: Path | None = None
    """A checkpoint folder whose fully trained parts stand in for the folder's."""
    vae: Path | None = None
    """The folder of another autoencoder, which stands in for the folder's."""
    scheduler: Mapping[str, object] = field(default_factory=dict)
    """What the run changed in the folder's scheduler configuration."""

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component, from its JSON file."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.parts.get(component, self.folder / component) / name)

    @property
    def parts(self) -> dict[str, Path]:
        """The folders that stand in for the pipeline folder's own, by component."""
        found = dict[str, Path]()
        if self.checkpoint is not None:
            found = {place.parent.name: place.parent for place in sorted(self.checkpoint.glob("*/config.json"))}
        if self.vae is not None:
            found[find(self.pipeline, second_stage=True).autoencoder] = self.vae
        return found

    @property
    def index(self) -> dict[str, Any]:
        """What model_index.json says."""
        return read_json(self.folder / "model_index.json")

    @property
    def pipeline(self) -> str:
        return str(wanted(self.folder / "model_index.json", "_class_name"))


def resolve(name: str, revision: str = "", like: str = "", progress: Progress = base_file.quiet) -> ModelSource:
    """The model that `name` means: "tiny", a pipeline folder, a run or checkpoint folder, a file, or a Hub id.

    like: for a whole model in one file, the folder or Hub id that lends it configurations, tokenizer and scheduler.
    """
    if name == "tiny":
        return ModelSource(name=name, folder=Path(str(files("gesso.demo") / "assets" / "tiny")))
    path = Path(name).expanduser()
    if path.is_file():
        return _file(name, path, like, progress)
    if not path.exists() and path.suffix.lower() in base_file.SUFFIXES:
        raise RecipeError(f'there is no file "{name}"', todo="check its path")
    if (path / "model_index.json").is_file():
        _readable(path)
        return ModelSource(name=name, folder=path, words=tuple(embeddings.files(path)))
    if path.is_dir():
        return _run_folder(name, path)
    if looks_like_hub_id(name):
        return ModelSource(name=name, folder=from_hub(name, revision))
    raise RecipeError(
        f'there is no model "{name}"',
        todo='give "tiny", the path of a diffusers folder or of a run, or a Hub id such as "owner/name"',
    )


def _readable(folder: Path) -> None:
    """RecipeError for a folder that mindone has saved: nobody but mindone knows the names in its text encoders.

    diffusers would go on with random weights in place of them.
    """
    for part in sorted(folder.glob("text_encoder*")):
        for path in sorted(part.glob("*.safetensors")):
            odd = [name for name in tensors.header(path).tensors if mindspore_names.plain(name) != name]
            if odd:
                raise RecipeError(
                    f"the model's {part.name} has MindSpore's names, such as {odd[0]}, which no other library reads",
                    where=str(path),
                    todo=f"rewrite the model once, with `gesso convert {folder} --to NEW`, and use that",
                )


def chosen(table: Model, progress: Progress = base_file.quiet) -> ModelSource:
    """The model that a recipe's [model] starts from; its autoencoder is another matter (`with_vae`)."""
    return resolve(table.base, table.revision, table.like, progress)


def here(name: str, revision: str = "") -> ModelSource | None:
    """`resolve` without asking a host: None for a Hub model that is not on this machine."""
    if not looks_like_hub_id(name) or Path(name).expanduser().exists():
        return resolve(name, revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision or None, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return replace(resolve(folder), name=name)


def with_vae(source: ModelSource, name: str) -> ModelSource:
    """`source` with the autoencoder that `name` means in place of its own; as it is where `name` is empty.

    A folder with an autoencoder's config.json, any model that has one, or a Hub id. RecipeError for one whose latents
    have another number of channels than the denoiser takes.
    """
    if not name:
        return source
    folder = _autoencoder(name)
    family = find(source.pipeline, second_stage=True)
    if not any(folder.glob("*.safetensors")):
        raise RecipeError(f"the autoencoder {name} has no .safetensors weights", where=str(folder), todo=WHOLE)
    kind = read_json(folder / "config.json").get("_class_name", "")
    if not str(kind).startswith("Autoencoder"):
        raise RecipeError(f"{name} is no autoencoder, but of the kind {kind or 'that it does not say'}")
    changed = replace(source, vae=folder)
    channels = changed.config(family.autoencoder).get("latent_channels")
    takes = source.config(family.denoiser).get("in_channels")
    if channels != takes:
        raise RecipeError(
            f"the autoencoder {name} makes latents of {channels} channels, and {source.name} takes {takes}",
            todo="name an autoencoder that was made for models of this kind",
        )
    return changed


@contextmanager
def composed(source: ModelSource) -> Iterator[ModelSource]:
    """`source` with one folder that holds all of it: the folder's own components, and those that stand in for some.

    Where some do, it is a temporary folder of links, gone on leaving. A LoRA stays a file on top.
    """
    parts = source.parts
    if not parts:
        yield source
        return
    with TemporaryDirectory(prefix="gesso-") as name:
        folder = Path(name)
        for place in source.folder.iterdir():
            if place.is_dir() and not place.name.startswith("."):
                _link(parts.get(place.name, place), folder / place.name)
        index = source.index
        for part, place in parts.items():
            if isinstance(index.get(part), list) and (kind := read_json(place / "config.json").get("_class_name")):
                index[part] = [index[part][0], kind]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        if (source.folder / "README.md").is_file():
            shutil.copyfile(source.folder / "README.md", folder / "README.md")
        yield replace(source, folder=folder, checkpoint=None, vae=None)


def _link(part: Path, place: Path) -> None:
    try:
        place.symlink_to(part.resolve(), target_is_directory=True)
    except OSError:  # not every system lets everybody make links
        shutil.copytree(part, place)


def _autoencoder(name: str) -> Path:
    """The folder of the autoencoder that `name` means."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    if not path.exists() and name != "tiny" and looks_like_hub_id(name):
        fetched = from_hub(name, "", WANTED_VAE)
        return fetched if (fetched / "config.json").is_file() else fetched / "vae"
    source = resolve(name)
    return source.vae or source.folder / find(source.pipeline, second_stage=True).autoencoder


def whole(source: ModelSource) -> ModelSource:
    """The same source, or RecipeError where training, which starts from a folder, would leave some of it out."""
    if source.lora or source.checkpoint or source.words:
        kind = "a LoRA" if source.lora else "a checkpoint" if source.checkpoint else "a model with learned words"
        raise RecipeError(
            f"{source.name} is {kind} on top of {source.folder.name}, and training starts from a whole model",
            todo="set model.base to a diffusers folder, or to a finished run of full fine-tuning",
        )
    return source


def looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _file(name: str, path: Path, like: str, progress: Progress) -> ModelSource:
    if path.name == LORA:
        return _run_folder(name, path.parent)
    if like:
        return ModelSource(name=name, folder=base_file.unpacked(path, _lending(like), progress))
    kind = NAMES[base_file.family(path)]
    raise RecipeError(
        f"{name} is a {kind} in one file, which has no configurations, tokenizer or scheduler",
        todo=f"name a folder or Hub id of {kind} that lends them as model.like; or make a folder of it: "
        f"gesso convert {path.name} --to FOLDER --like FOLDER",
    )


def _lending(like: str) -> Path:
    """The folder that `model.like` means; of a Hub id no weights are fetched."""
    if not Path(like).expanduser().exists() and like != "tiny" and looks_like_hub_id(like):
        return from_hub(like, "", LENT)
    return whole(resolve(like)).folder


def _run_folder(name: str, path: Path) -> ModelSource:
    """A run, or a checkpoint in one: its base comes from the run's effective recipe."""
    run = path.parent if path.name.startswith("checkpoint-") else path
    effective = run / "effective.json"
    lora = adapter.place(path)
    words = tuple(embeddings.files(path))
    trained = lora or words or (path != run and any(path.glob("*/config.json")))
    if not effective.is_file() or not trained:
        raise RecipeError(
            f"{name} is a folder, but holds neither a model (model_index.json) nor the result of a run",
            todo="name a diffusers folder, a finished run, or a checkpoint folder inside a run",
        )
    name_, revision = (str(_chosen(effective, f"model.{key}")) for key in ("base", "revision"))
    base = resolve(name_, revision, _later(effective, "model.like"))
    own = {name: _chosen(effective, f"objective.{name}") for name in ("prediction", "zero_snr")}
    try:
        table = ObjectiveTable(**own)
    except ValidationError as error:
        raise RecipeError(f"the run's objective cannot be: {own}", where=str(effective)) from error
    source = ModelSource(
        name=name,
        folder=base.folder,
        lora=lora,
        words=words,
        checkpoint=path if any(path.glob("*/config.json")) else None,
        scheduler=scheduler_changes(table),
    )
    return with_vae(source, _later(effective, "model.vae"))


def base_of(run: Path) -> tuple[str, str]:
    """The base model of a run folder as its recipe names it, and what lends a file its configurations ("" for none)."""
    effective = run / "effective.json"
    return str(_chosen(effective, "model.base")), _later(effective, "model.like")


def _chosen(effective: Path, key: str) -> Any:
    """A value of a run's recipe."""
    found = wanted(effective, key)
    if not isinstance(found, dict) or "value" not in found:
        raise RecipeError(f'"{key}" has no value', where=str(effective), todo=WHOLE)
    return found["value"]


def _later(effective: Path, key: str) -> str:
    """A value of a run's recipe that runs of earlier versions do not have."""
    return str(_chosen(effective, key)) if key in read_json(effective) else ""


def scheduler_changes(table: ObjectiveTable) -> dict[str, object]:
    """What an objective changes in the model's scheduler: a model must be drawn with as it was trained."""
    changes = dict[str, object]()
    if table.prediction != "auto":
        changes["prediction_type"] = table.prediction
    if table.zero_snr or table.prediction == "sample":
        # PNDM, the usual scheduler of SD 1.x, knows neither sample nor the rescaled schedule. DDIM knows both, but
        # would clip what is no picture but a latent.
        changes |= {"_class_name": "DDIMScheduler", "clip_sample": False}
    if table.zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif table.zero_snr is False:
        changes["rescale_betas_zero_snr"] = False
    return changes


def from_hub(name: str, revision: str, patterns: Sequence[str] = WANTED) -> Path:
    """The folder of a Hub model, downloaded once; the only place that contacts a host, and only the one named."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(UNWANTED)
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
