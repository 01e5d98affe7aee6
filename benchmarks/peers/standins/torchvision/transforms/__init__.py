"""Transforms of PIL pictures, with torchvision's names and meaning (its reference documentation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import torch
from PIL import Image, ImageOps

from torchvision.transforms import functional

Transform = Callable[[object], object]


class InterpolationMode(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, value: object) -> object:
        for transform in self.transforms:
            value = transform(value)
        return value


class Lambda:
    def __init__(self, function: Transform) -> None:
        self.function = function

    def __call__(self, value: object) -> object:
        return self.function(value)


class Resize:
    """The shorter side becomes `size` pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.resample = size, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        short, long = sorted(picture.size)
        if short == self.size:
            return picture
        other = int(self.size * long / short)
        width, height = (self.size, other) if picture.width <= picture.height else (other, self.size)
        return picture.resize((width, height), self.resample)


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        top, left = (round((side - self.size) / 2.0) for side in (picture.height, picture.width))
        return functional.crop(picture, top, left, self.size, self.size)


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    @staticmethod
    def get_params(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop."""
        room = [side - wanted for side, wanted in zip((picture.height, picture.width), size, strict=True)]
        top, left = (int(torch.randint(0, each + 1, (1,)).item()) for each in room)
        return top, left, *size

    def __call__(self, picture: Image.Image) -> Image.Image:
        return functional.crop(picture, *self.get_params(picture, (self.size, self.size)))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if torch.rand(1).item() < self.p else picture


class ToTensor:
    """float32 [C, H, W] from 0 to 1."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(each).view(-1, 1, 1) for each in (mean, std))

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        return (value - self.mean) / self.std
