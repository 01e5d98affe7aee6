"""CLIP text encoders in the names of transformers, and in those of OpenCLIP as Stable Diffusion 2 and XL have them.

    text_model.embeddings.token_embedding.weight            token_embedding.weight
    text_model.embeddings.position_embedding.weight         positional_embedding
    text_model.encoder.layers.N.self_attn.{q,k,v}_proj      transformer.resblocks.N.attn.in_proj_{weight,bias}, stacked
    text_model.encoder.layers.N.mlp.fc1                     transformer.resblocks.N.mlp.c_fc
    text_projection.weight [width, hidden]                  text_projection [hidden, width]

MindSpore's files have OpenCLIP's arrangement under names of their own for both SD 1 and SD 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from gesso.arrays import Array
from gesso.errors import StorageError
from gesso.formats.stored import Stored, Tensors

_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OURS = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_QKV = ("q_proj", "k_proj", "v_proj")


def pack(ours: Tensors) -> dict[str, Stored]:
    """OpenCLIP's tensors of a text encoder in transformers' names, q, k and v stacked in that order.

    Raises StorageError for a name that a CLIP text encoder does not have and for q, k, v that are not all there.
    """
    made: dict[str, Stored] = {}
    for name, tensor in ours.items():
        layer = _OURS.fullmatch(name)
        if name == "text_projection.weight":
            made[_ENDS[name]] = transposed(tensor)
        elif name in _ENDS:
            made[_ENDS[name]] = tensor
        elif layer and layer[2] in _LAYER:
            made[f"transformer.resblocks.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "self_attn.q_proj":
            names = [f"text_model.encoder.layers.{layer[1]}.self_attn.{each}.{layer[3]}" for each in _QKV]
            absent = [each for each in names if each not in ours]
            if absent:
                raise StorageError(f'the text encoder has "{name}", but not "{absent[0]}"')
            made[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = stacked([ours[each] for each in names])
        elif not (layer and layer[2].removeprefix("self_attn.") in _QKV):
            raise StorageError(f'"{name}" is no parameter of a CLIP text encoder')
    return made


def unpack(theirs: Tensors) -> tuple[dict[str, Stored], list[str]]:
    """A text encoder in transformers' names, and the names that were not known."""
    ends = {other: name for name, other in _ENDS.items()}
    parts = {other: name for name, other in _LAYER.items()}
    made: dict[str, Stored] = {}
    unknown = []
    for name, tensor in theirs.items():
        layer = _THEIRS.fullmatch(name)
        if name == "text_projection":
            made[ends[name]] = transposed(tensor)
        elif name in ends:
            made[ends[name]] = tensor
        elif layer and layer[2] in parts:
            made[f"text_model.encoder.layers.{layer[1]}.{parts[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "attn.in_proj":
            for each, third in zip(_QKV, thirds(tensor, name), strict=True):
                made[f"text_model.encoder.layers.{layer[1]}.self_attn.{each}.{layer[3]}"] = third
        else:
            unknown.append(name)
    return made, unknown


def changed(tensor: Stored, shape: tuple[int, ...], change: Callable[[Array], Array]) -> Stored:
    """The tensor as `change` makes it once it is read."""
    return Stored(code=tensor.code, shape=shape, read=lambda: change(tensor.read()))


def transposed(tensor: Stored) -> Stored:
    """A matrix with rows and columns exchanged."""
    return changed(tensor, tensor.shape[::-1], lambda values: values.T)


def reshaped(tensor: Stored, shape: tuple[int, ...]) -> Stored:
    """The same values in another shape."""
    return changed(tensor, shape, lambda values: values.reshape(shape))


def stacked(tensors: list[Stored]) -> Stored:
    """Tensors of one type and shape, one after another along the first axis."""
    first = tensors[0]
    if any((each.code, each.shape) != (first.code, first.shape) for each in tensors):
        raise StorageError("q, k and v of a text encoder's layer are not of one type and shape")
    shape = (first.shape[0] * len(tensors), *first.shape[1:])
    return Stored(code=first.code, shape=shape, read=lambda: np.concatenate([each.read() for each in tensors]))


def thirds(tensor: Stored, name: str) -> list[Stored]:
    """The three equal parts of a tensor along its first axis; StorageError where it has none."""
    if not tensor.shape or tensor.shape[0] % 3:
        raise StorageError(f'"{name}" has the shape {list(tensor.shape)}, which does not split into q, k and v')
    size = tensor.shape[0] // 3
    shape = (size, *tensor.shape[1:])

    def third(at: int) -> Stored:
        return changed(tensor, shape, lambda values: values[at * size : (at + 1) * size])

    return [third(at) for at in range(3)]


def legacy(tensors: Tensors) -> dict[str, Stored]:
    """A text encoder's tensors with `text_model.` before their names, which transformers 5 leaves out.

    The positions 0, 1, 2 …, which older files hold as a tensor, are left out: transformers computes them.
    """
    kept = ("text_model.", "text_projection.")
    return {
        name if name.startswith(kept) else f"text_model.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }


def layers(tensors: Mapping[str, object]) -> int:
    """How many layers a text encoder in transformers' names has."""
    return len({found[1] for name in tensors if (found := _OURS.fullmatch(name))})
