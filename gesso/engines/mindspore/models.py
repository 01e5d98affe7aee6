"""The networks of one model folder, made by mindone and filled from the same files, when first needed.

The weights are put in here and not by mindone: it leaves a network random where the names in a file are not its own
(transformers 5 writes text encoders so), and says so in a log alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import amp, mint, nn
from mindspore.nn.utils import no_init_parameters

from gesso.arrays import Array
from gesso.errors import GessoError, RecipeError
from gesso.formats import pipeline

UNUSED = ("safety_checker", "feature_extractor")
LIBRARIES = {"diffusers": "mindone.diffusers", "transformers": "mindone.transformers"}
HALVES = {"bf16": ms.bfloat16, "fp16": ms.float16}
LEGACY = "text_model."
NO_MEMORY = r"(?i)out of memory|memory (isn't|is not|not) enough|alloc\w* (device |host )?memory fail"
"""How MindSpore says so, in several places and words."""
OWN_NAMES: tuple[tuple[tuple[type, ...], dict[str, str]], ...] = (
    ((nn.LayerNorm, nn.GroupNorm), {"gamma": "weight", "beta": "bias"}),
    ((nn.Embedding,), {"embedding_table": "weight"}),
)
"""What MindSpore's own layers call what files call weight and bias."""
LINEAR = (nn.Dense, mint.nn.Linear)
CONVOLUTION = (nn.Conv2d, mint.nn.Conv2d)


class Models:
    """A pipeline folder as lazily loaded components; each is frozen and in evaluation mode until told otherwise."""

    def __init__(
        self, folder: Path, scheduler: Mapping[str, object], half: Mapping[str, Any], held: Mapping[str, Any]
    ) -> None:
        """Types by component: `half` is what products of matrices are computed in, `held` what weights are kept in.

        Components that are not named are float32 in both.
        """
        self.folder, self._changes, self._half, self._held = folder, dict(scheduler), dict(half), dict(held)
        self.index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        self.said: set[str] = set()
        """Notes on long prompts that have been given."""
        self._loaded: dict[str, Any] = {}
        self._parameters: dict[str, dict[str, ms.Parameter]] = {}
        for name, value in self.index.items():
            if isinstance(value, list) and value and value[0] and name not in UNUSED:
                self._kind(name)

    def get(self, name: str) -> Any:
        """The component `name`."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def parameters(self, name: str) -> Mapping[str, ms.Parameter]:
        """The parameters of a network by the names that files have for them.

        As they were when it was loaded: a forward pass may change what MindSpore calls some of them.
        """
        self.get(name)
        return self._parameters[name]

    def _kind(self, name: str) -> Any:
        """The class of a component; RecipeError for one that mindone has not."""
        value = self.index.get(name)
        if not isinstance(value, list):
            raise RecipeError(f"the model's configuration lacks {name}", where=str(self.folder / "model_index.json"))
        library, cls = value if len(value) == 2 else ("", "")
        if str(cls).endswith("Tokenizer") and library == "transformers":
            return getattr(import_module("transformers"), str(cls))
        kind = getattr(import_module(LIBRARIES[library]), str(cls), None) if library in LIBRARIES else None
        if kind is None:
            raise RecipeError(
                f"the model's {name} is of the kind {'.'.join(map(str, value))}, which mindone does not have",
                where=str(self.folder / "model_index.json"),
                todo='use another model, or set engine = "torch"',
            )
        return kind

    def _load(self, name: str) -> Any:
        kind, folder = self._kind(name), self.folder / name
        try:
            if name.startswith("tokenizer"):
                return _tokenizer(kind, folder)
            net = _network(kind, folder)
            self._parameters[name] = _public(net)
            _fill(net, self._parameters[name], pipeline.read_part(folder))
        except (GessoError, MemoryError):
            raise
        except Exception as error:  # a broken folder ends in whatever the libraries stumble over first
            raise RecipeError(
                f"the model's {name} cannot be read: {first_line(error)}",
                where=str(folder),
                todo="check that the folder is a whole diffusers model with .safetensors weights",
            ) from error
        if name in self._held:
            net.to(self._held[name])
        if name in self._half:
            amp.auto_mixed_precision(net, "auto", self._half[name])
        freeze(net)
        return net.set_train(False)

    @cached_property
    def scheduler(self) -> Any:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            cls = self._changes.get("_class_name", self.index["scheduler"][1])
            config = json.loads(path.read_text(encoding="utf-8"))
            return getattr(import_module(LIBRARIES["diffusers"]), str(cls)).from_config({**config, **self._changes})
        except Exception as error:  # as above
            raise RecipeError(f"the model's scheduler cannot be made: {first_line(error)}", where=str(path)) from error


def layers(net: Any) -> dict[str, Any]:
    """The layers that an adapter can go on, by the name that files have for them."""
    found = {name: cell for name, cell in net.cells_and_names() if isinstance(cell, LINEAR + CONVOLUTION)}
    return {public(net, name): cell for name, cell in found.items()}


def public(net: Any, name: str) -> str:
    """A name inside of `net` as transformers 5 has it: a CLIPTextModel's without "text_model."."""
    return name.removeprefix(LEGACY) if type(net).__name__ == "CLIPTextModel" else name


def freeze(net: Any) -> None:
    for _, parameter in net.parameters_and_names():
        parameter.requires_grad = False


def recompute(net: Any) -> None:
    """Compute the activations of a network's larger blocks again in the backward pass, instead of keeping them.

    mindone's own switch asks for a method that MindSpore does not have. MindSpore's other way (`use_reentrant`) loses
    the gradient of whatever a block is given by keyword, such as captions, and of part of its weights.
    """
    kinds = ("ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer")
    for _, cell in net.cells_and_names():
        if type(cell).__name__ in kinds:
            cell.recompute(use_reentrant=False)


def unlike(models: Models, names: Iterable[str]) -> None:
    """Give every parameter a name of its own, as a graph wants it.

    A layer that an adapter has been put around calls its weights as its neighbours do.
    """
    for name in names:
        for own, parameter in models.parameters(name).items():
            parameter.name = f"{name}.{own}"


@contextmanager
def graph_mode() -> Iterator[None]:
    """Cells that are called meanwhile are graphs, made at the first call with inputs of some shapes, and for those.

    A graph is what the cell was then: adapters that are switched off or added later do not show in it. (`ms.jit`, which
    would do the same in eager mode, takes three times as long for a step.) RecipeError where there cannot be one.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    except Exception as error:  # whatever its compiler stumbles over
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            raise
        raise RecipeError(
            f"MindSpore cannot make a graph of this model's training step: {first_line(error)}",
            todo="set mindspore.compile = false",
        ) from error
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tokenizer(kind: Any, folder: Path) -> Any:
    if not (folder / "vocab.json").is_file():  # as transformers 5 leaves them
        kind = getattr(import_module("transformers"), f"{kind.__name__.removesuffix('Fast')}Fast")
    return kind.from_pretrained(folder, local_files_only=True)


def _network(kind: Any, folder: Path) -> Any:
    """The network of the folder's configuration, its weights not yet set."""
    with no_init_parameters():
        if hasattr(kind, "config_class"):
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def _public(net: Any) -> dict[str, ms.Parameter]:
    renamed = {
        f"{name}.{own}".removeprefix("."): f"{name}.{file}".removeprefix(".")
        for name, cell in net.cells_and_names()
        for kinds, names in OWN_NAMES
        if isinstance(cell, kinds)
        for own, file in names.items()
    }
    return {public(net, renamed.get(name, name)): value for name, value in net.parameters_and_names()}


def _fill(net: Any, parameters: Mapping[str, ms.Parameter], arrays: Mapping[str, Array]) -> None:
    """Give each parameter the array of its name; RecipeError unless they are the same names and shapes."""
    known = {name: value for name, value in arrays.items() if not name.endswith("position_ids")}
    if hasattr(net, "_fix_state_dict_keys_on_load"):  # of autoencoders from before diffusers 0.13
        known = net._fix_state_dict_keys_on_load(known)
    known = {public(net, name): value for name, value in known.items()}
    for name in sorted(parameters.keys() ^ known.keys()):
        what = "no weight" if name in parameters else "a weight too many,"
        raise RecipeError(f'there is {what} "{name}"', todo="fetch the model again")
    for name, parameter in parameters.items():
        if parameter.shape != known[name].shape:
            raise RecipeError(f'"{name}" has the shape {known[name].shape}, must have {tuple(parameter.shape)}')
        parameter.set_data(ms.Tensor(np.ascontiguousarray(known[name], dtype=np.float32)))
