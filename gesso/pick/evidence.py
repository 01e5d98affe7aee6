"""What the base and each checkpoint of a run are asked: the same pictures and noise, the same prompts and seeds.

    held-out loss   pictures the run has not learned from, as during the run, at several draws of noise
    drift           pictures that the base has drawn of unrelated prompts: how far its answers on them have moved
    likeness        pictures of the training captions, drawn now: how near they come to the training pictures

What is drawn is kept in RUN/pick/, so that picking again draws nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gesso import prior, settings
from gesso.arrays import Float64, Picture
from gesso.data import images
from gesso.data.batches import Piece, held_out
from gesso.data.dataset import Dataset
from gesso.data.plan import Slot
from gesso.data.record import Record
from gesso.engines.engine import SampleRequest
from gesso.errors import DataError, NumbersError
from gesso.formats import png
from gesso.job import Job
from gesso.pick import likeness
from gesso.pick.choice import Measured
from gesso.report.cells import spread

FOLDER = "pick"
PICTURES = 64
"""Held-out pictures that are measured at most, evenly spread over all of them."""
SHOWN = 256
"""Training pictures that drawn ones are held against at most."""
UNRELATED = 8
"""Unrelated prompts."""
DRAWS = 32
"""Held-out pictures times draws of noise for each, about: of few pictures, each is measured more often."""
LEVELS, DRIFT_LEVELS = 8, 4
"""Noise levels at which losses, at least, and drift are measured."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What each candidate is asked, and what its answers are held against."""

    job: Job
    held_out: Sequence[Piece]
    unrelated: Sequence[Piece]
    wanted: Sequence[SampleRequest]
    features: Float64
    """Of the training pictures, float64 [N, F]."""
    thumbnails: Float64
    """Of the training pictures, float64 [N, 16, 16, 3]."""
    real: float | None
    """Mean distance of held-out pictures to the training pictures; None where nothing is held out."""
    base: str
    """What tells the base's weights from any others."""
    near: float
    """Thumbnails nearer than this are copies; 0 where nothing shows how near different pictures are."""

    @property
    def notes(self) -> list[str]:
        """What cannot be found out, without full stops."""
        if self.near:
            return []
        return [
            "Whether pictures are copies cannot be told: that takes two different pictures of yours, which show how "
            "near different ones are"
        ]

    def measure(self, step: int, weights: str, progress: Progress) -> Measured:
        """The answers of the weights that the engine now has; `weights` tells them from any others.

        Where the answers are no numbers, nan stands for all of them.
        """
        ema = settings.averages(self.job.recipe)
        try:
            files = drawn(self.job, f"step-{step}", self.wanted, {"step": step, "weights": weights}, progress)
        except NumbersError:
            return Measured(step=step, held_out=(math.nan,))
        pictures = [images.load(file) for file in files]
        features = np.stack([likeness.features(each) for each in pictures])
        thumbnails = np.stack([likeness.thumbnail(each) for each in pictures])
        copies = likeness.apart(thumbnails, self.thumbnails).min(1) < self.near
        return Measured(
            step=step,
            held_out=errors(self.job, self.held_out, f"measuring step-{step}", progress, ema=ema),
            distance=tuple(likeness.distances(features, self.features).tolist()),
            copies=tuple(copies.tolist()) if self.near else (),
            drift=errors(self.job, self.unrelated, f"drift of step-{step}", progress, ema=ema),
        )


def questions(
    job: Job, learning: Sequence[Record], holding: Sequence[Record], pictures: int, progress: Progress
) -> Questions:
    """Make ready what is asked. The engine holds the base, trainable and not yet trained; `pictures` are drawn each
    time."""
    shown, held = ready(job, spread(learning, SHOWN), progress), ready(job, spread(holding, PICTURES), progress)
    known, new = looks(shown), looks(held)
    base = " ".join(map(job.part_identity, job.parts))
    levels = max(job.recipe.validate_.timesteps, LEVELS)
    captions = list(dict.fromkeys(map(shown.plain_caption, range(len(shown.records)))))
    wanted = [request(job, captions[at % len(captions)], at) for at in range(pictures)]
    return Questions(
        job=job,
        held_out=pieces(job, held, levels=levels, draws=max(1, DRAWS // max(len(held.records), 1))),
        unrelated=unrelated(job, base, progress),
        base=base,
        wanted=wanted,
        features=known.features,
        thumbnails=known.thumbnails,
        real=float(likeness.distances(new.features, known.features).mean()) if held.records else None,
        near=likeness.near(known.thumbnails, new.thumbnails, before(job, wanted, base, progress)),
    )


def before(job: Job, wanted: Sequence[SampleRequest], base: str, progress: Progress) -> Float64:
    """Thumbnails of what the base draws, float64 [B, 16, 16, 3]; none where it cannot."""
    try:
        files = drawn(job, "step-0", wanted, {"step": 0, "weights": base}, progress)
    except NumbersError:
        files = []  # said when the base is measured
    return np.array([likeness.thumbnail(images.load(file)) for file in files])


def unrelated(job: Job, base: str, progress: Progress) -> list[Piece]:
    """Pictures that the base draws of unrelated prompts, to be answered as the base does."""
    prompts = spread(prior.other_captions(job.recipe.prior), UNRELATED)
    wanted = [request(job, prompt, at) for at, prompt in enumerate(prompts)]
    files = drawn(job, "unrelated", wanted, {"step": 0, "weights": base}, progress)
    records = [Record(path=file, captions=(prompt,)) for file, prompt in zip(files, prompts, strict=True)]
    found = pieces(job, ready(job, records, progress), levels=DRIFT_LEVELS)
    return [(replace(batch, teacher=np.ones(len(batch), np.float32)), c) for batch, c in found]


def ready(job: Job, records: Sequence[Record], progress: Progress) -> Dataset:
    """The records as the model sees them, nothing of them drawn by chance."""
    dataset = job.dataset(records, exact=True)
    if records:
        dataset.prepare(progress)
    return dataset


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Features float64 [N, F] and thumbnails float64 [N, 16, 16, 3] of pictures."""

    features: Float64
    thumbnails: Float64


def looks(dataset: Dataset) -> Looks:
    """Of a data set's pictures as they are trained on."""
    cuts = [cut(dataset, row) for row in range(len(dataset.records))]
    return Looks(
        features=np.array([likeness.features(each) for each in cuts]),
        thumbnails=np.array([likeness.thumbnail(each) for each in cuts]),
    )


def cut(dataset: Dataset, row: int) -> Picture:
    """A data set's picture in the crop that is trained on, uint8 [H, W, 3]."""
    place, transform = dataset.records[row].place, dataset.transform(Slot(row=row, epoch=0))
    pixels = images.apply(dataset.pictures.decode(place, [transform]), transform)
    found: Picture = np.rint((pixels.transpose(1, 2, 0) + 1.0) * 127.5).astype(np.uint8)
    return found


def request(job: Job, prompt: str, seed: int) -> SampleRequest:
    """A picture drawn as the run draws its samples."""
    table = job.recipe.sample
    return SampleRequest(
        prompt=prompt,
        seed=seed,
        negative=table.negative,
        width=table.width or job.side,
        height=table.height or job.side,
        steps=table.steps,
        guidance=table.guidance,
        scheduler=table.scheduler,
    )


def drawn(
    job: Job, name: str, wanted: Sequence[SampleRequest], notes: Mapping[str, object], progress: Progress
) -> list[Path]:
    """RUN/pick/NAME/00000.png …, each drawn unless it is there and says that it was made so."""
    files = []
    for at, each in enumerate(wanted):
        progress(f"drawing {name}", at, len(wanted))
        files.append(job.out / FOLDER / name / f"{at:05d}.png")
        said = {**each.as_dict(), **notes}
        if not _says(files[-1], said):
            (picture,) = job.engine.sample([each], ema=settings.averages(job.recipe))
            png.write(files[-1], picture, said)
    progress(f"drawing {name}", len(wanted), len(wanted))
    return files


def _says(file: Path, said: Mapping[str, object]) -> bool:
    try:
        return file.is_file() and png.read(file) == said
    except DataError:
        return False


def pieces(job: Job, dataset: Dataset, *, levels: int, draws: int = 1) -> list[Piece]:
    """Every picture of `dataset` at several noise levels, with `draws` noises, the first of them the run's own."""
    scale, shift = job.family.scale(job.source.config(job.family.autoencoder))
    return [
        piece
        for draw in range(draws)
        for piece in held_out(
            dataset,
            objective=job.objective,
            timesteps=levels,
            batch=job.recipe.train.micro_batch or job.recipe.train.batch,
            scale=scale,
            shift=shift,
            seed=job.recipe.seed + draw,
        )
    ]


def errors(job: Job, asked: Sequence[Piece], what: str, progress: Progress, *, ema: bool) -> tuple[float, ...]:
    """The mean error of each picture, in the order of its row."""
    found: dict[int, list[float]] = {}
    for at, (batch, coefficients) in enumerate(asked, 1):
        for row, error in zip(batch.ids, job.engine.evaluate(batch, coefficients, ema=ema), strict=True):
            found.setdefault(int(row), []).append(float(error))
        progress(what, at, len(asked))
    return tuple(float(np.mean(found[row])) for row in sorted(found))
