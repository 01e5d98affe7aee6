"""The networks of one model folder, read when first needed.

A run on cached latents and captions touches neither the autoencoder nor a text encoder until it samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gesso.errors import RecipeError

LIBRARIES = ("diffusers", "transformers")
UNUSED = ("safety_checker", "feature_extractor")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Models:
    """A pipeline folder as lazily loaded components; each is frozen and in evaluation mode until told otherwise."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        scheduler: Mapping[str, object],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        """`dtypes` says in which type a component is held; the others are float32."""
        self.folder, self.device, self._changes, self._dtypes = folder, device, dict(scheduler), dict(dtypes)
        self.index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        self.overflows = False
        """Whether the autoencoder has been seen to overflow in half precision."""
        self.said: set[str] = set()
        """Notes on long prompts that have been given."""
        self._loaded: dict[str, Any] = {}
        for name, value in self.index.items():
            if isinstance(value, list) and value and value[0] and name not in UNUSED:
                self._known(name, value)

    def _known(self, name: str, value: list[Any]) -> None:
        """RecipeError for a class that is none of diffusers' or transformers'; nothing else is imported by name."""
        library, cls = value if len(value) == 2 else ("", "")
        # dir() of these libraries lists what they would import when asked.
        if library not in LIBRARIES or cls not in _names(library):
            raise RecipeError(
                f"the model's {name} is of the kind {'.'.join(map(str, value))}, which diffusers and transformers "
                "do not have",
                where=str(self.folder / "model_index.json"),
                todo="use another model, or newer libraries; a model of gesso's reference engine is for tests alone",
            )

    def get(self, name: str) -> Any:
        """The component `name`, on the device."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._dtypes.get(name, torch.float32))
        return self._loaded[name]

    def has(self, name: str) -> bool:
        """Whether the component is in memory."""
        return name in self._loaded

    def _load(self, name: str, dtype: torch.dtype) -> Any:
        if not isinstance(self.index.get(name), list):
            raise RecipeError(f"the model's configuration lacks {name}", where=str(self.folder / "model_index.json"))
        library, cls = self.index[name]
        kind = getattr(import_module(library), cls)
        folder = self.folder / name
        variant = next((v for v in ("fp16", "bf16") if self._only_variant(folder, v)), None)
        try:
            if not issubclass(kind, torch.nn.Module):
                return kind.from_pretrained(folder)
            extra = {"variant": variant} if variant else {}
            net, said = kind.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **extra,
            )
        except Exception as error:  # a broken folder ends in whatever the libraries stumble over first
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
                raise
            raise RecipeError(
                f"the model's {name} cannot be read: {_first_line(error)}",
                where=str(folder),
                todo="check that the folder is a whole diffusers model with .safetensors weights",
            ) from error
        # Both libraries go on with random weights in place of those that the files lack.
        if absent := sorted(set(said["missing_keys"]) & dict(net.named_parameters()).keys()):
            raise RecipeError(
                f"the model's {name} lacks {absent[0]}"
                + (f" and {len(absent) - 1} more weights" if absent[1:] else ""),
                where=str(folder),
                todo="fetch the model again",
            )
        net.requires_grad_(False)
        return net.eval().to(self.device)

    @staticmethod
    def _only_variant(folder: Path, variant: str) -> bool:
        weights = [file.name for file in folder.glob("*.safetensors")]
        return bool(weights) and all(f".{variant}." in file for file in weights)

    @cached_property
    def scheduler(self) -> Any:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            library, own = self.index["scheduler"]
            cls = self._changes.get("_class_name", own)
            config = json.loads(path.read_text(encoding="utf-8"))
            return getattr(import_module(library), str(cls)).from_config({**config, **self._changes})
        except Exception as error:  # as above
            raise RecipeError(f"the model's scheduler cannot be made: {_first_line(error)}", where=str(path)) from error


@cache
def _names(library: str) -> frozenset[str]:
    """What a library has; asking takes these two a third of a second."""
    return frozenset(dir(import_module(library)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
