"""A model family: facts about it, and what differs from one to another in a few small functions.

One file a family. The functions are framework-blind: they touch arrays and networks only by calling them and by
attributes that diffusers, transformers and mindone name alike, so that every engine runs the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gesso.arrays import Float32

Scale = float | Float32
"""One number for all latents, or float32 [C, 1, 1]: one for each channel."""
Size = tuple[int, int]
"""Two numbers of pixels: width and height, or left and top."""


class Family(Protocol):
    """What gesso must know to train a family."""

    name: str
    pipelines: tuple[str, ...]
    """Pipeline classes in model_index.json that belong to it."""
    refiners: tuple[str, ...]
    """Pipeline classes of its second stage, which goes on with what a model of this family has drawn."""
    denoiser: str
    """Component that is trained to remove noise."""
    autoencoder: str
    encoders: tuple[tuple[str, str], ...]
    """(text encoder, its tokenizer) components in order."""
    lora_targets: tuple[str, ...]
    """Layers of the denoiser that get an adapter when the recipe names none."""
    text_lora_targets: tuple[str, ...]
    """The same for each text encoder."""

    def scale(self, vae: Mapping[str, Any]) -> tuple[Scale, Scale]:
        """(scale, shift) of the latents, from the autoencoder's configuration: x0 = (z − shift)·scale."""
        ...

    def side(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
        """The model's own resolution in pixels, from the two configurations."""
        ...

    def drops_to_zeros(self, index: Mapping[str, Any]) -> bool:
        """Whether pictures are drawn with zeros, not with the encoded "", where there is no caption.

        `index` is the content of model_index.json.
        """
        ...

    def geometry(self, whole: Size, corner: Size, side: Size) -> dict[str, Float32]:
        """What the denoiser is told, by name, of one picture's size, without a batch axis; {} where it is told nothing.

        `whole` is the upright picture before resizing, `side` what is trained on, and `corner` the place of that in
        the resized picture.
        """
        ...

    def condition(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the denoiser is given, by name, from each text encoder's output (with all its hidden states).

        The engine joins a tuple along its last axis.
        """
        ...

    def predict(self, denoiser: Any, x: Any, c_noise: Any, cond: Mapping[str, Any]) -> Any:
        """The network's answer to c_in·x_t at conditioning time c_noise."""
        ...
