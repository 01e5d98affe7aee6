"""How fast large JPEGs become training pictures: gesso against Pillow as the usual training scripts use it.

`python benchmarks/pictures.py [--rounds N]`. Pictures of 6000 × 4000 pixels, detailed on every scale, are made first.
The scripts' way: open, turn upright (which copies the picture, as does their other way, to convert it to RGB), resize
until it covers the target, cut out the middle. Both end in float32 [3, side, side] in [-1, 1], read the same files in
turn and run in one thread; time is the process's processor time, so that the ratio is one of pictures a second and
core. The last columns say how far the two results are apart. Colour profiles, here sRGB's, are read by gesso alone.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import PIL
from measure import ratios, spread, table
from PIL import Image, ImageCms, ImageOps, features

from gesso.arrays import Float32
from gesso.data import images
from gesso.data.images import Transform

WIDTH, HEIGHT, COUNT = 6000, 4000, 3
CASES = [
    (512, "lanczos", False),
    (512, "bilinear", False),
    (1024, "lanczos", False),
    (1024, "bilinear", False),
    (1024, "bilinear", True),
]


def photo(seed: int) -> Image.Image:
    """Noise of every octave, stronger the coarser, as photographs have it; and shapes with hard edges."""
    rng = np.random.default_rng(seed)
    layers = np.full((HEIGHT, WIDTH, 3), 118.0, dtype=np.float32)
    for octave in range(1, 12):
        size = (max(2, HEIGHT >> (11 - octave)), max(2, WIDTH >> (11 - octave)))
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(0, 45 / 1.35**octave, size).astype(np.float32))
            layers[..., channel] += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    for _ in range(40):
        top, left = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        layers[top : top + rng.integers(20, 400), left : left + rng.integers(20, 400)] += rng.normal(0, 40, 3)
    return Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8))


def usual(path: Path, side: int, interpolation: str) -> Float32:
    """As the scripts do it."""
    image: Image.Image = Image.open(path)
    image = ImageOps.exif_transpose(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    short = min(image.size)
    size = (int(side * image.width / short), int(side * image.height / short))
    image = image.resize(size, images.RESAMPLING[interpolation])
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32)
    return np.ascontiguousarray((pixels / np.float32(127.5) - np.float32(1.0)).transpose(2, 0, 1))


def ours(path: Path, side: int, interpolation: str) -> Float32:
    transform = Transform(side_width=side, side_height=side, interpolation=interpolation)
    return images.apply(images.decode(images.contents(path), path, [transform]), transform)


def seconds(work: Callable[[Path, int, str], Float32], paths: Sequence[Path], side: int, interpolation: str) -> float:
    """Processor seconds a picture."""
    began = time.process_time()
    for path in paths:
        work(path, side, interpolation)
    return (time.process_time() - began) / len(paths)


def measured(folder: Path, side: int, interpolation: str, profile: bool, rounds: int) -> dict[str, str]:
    """One row of the table."""
    paths = [folder / f"{seed}{'-profile' * profile}.jpg" for seed in range(COUNT)]
    took: dict[str, list[float]] = {"usual": [], "ours": []}
    work = {"usual": usual, "ours": ours}
    for round_ in range(rounds):
        for name in ("usual", "ours") if round_ % 2 == 0 else ("ours", "usual"):
            took[name].append(seconds(work[name], paths, side, interpolation))
    apart = [np.abs(ours(path, side, interpolation) - usual(path, side, interpolation)) * 127.5 for path in paths]
    return {
        "side": str(side),
        "interpolation": interpolation,
        "profile": "sRGB" if profile else "none",
        "scripts' ms": spread([1e3 * each for each in took["usual"]], 0),
        "gesso's ms": spread([1e3 * each for each in took["ours"]], 0),
        "pictures a second and core, ratio": spread(ratios(took["usual"], took["ours"])),
        "mean difference of 255": f"{np.mean(apart):.2f}",
        "largest": f"{np.max(apart):.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    rounds = max(5, parser.parse_args().rounds)
    turbo = features.version_feature("libjpeg_turbo") if features.check_feature("libjpeg_turbo") else "none"
    print(f"JPEGs of {WIDTH} × {HEIGHT} pixels to training pictures, medians of {rounds} rounds of {COUNT}")
    print(f"{date.today()} · {platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {turbo}\n")
    with tempfile.TemporaryDirectory(prefix="gesso-bench-") as name:
        folder, srgb = Path(name), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for seed in range(COUNT):
            image = photo(seed)
            image.save(folder / f"{seed}.jpg", quality=92)
            image.save(folder / f"{seed}-profile.jpg", quality=92, icc_profile=srgb)
        print(table([measured(folder, *case, rounds) for case in CASES]))


if __name__ == "__main__":
    main()
