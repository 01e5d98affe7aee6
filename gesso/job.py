"""A recipe with its model and engine: the parts that a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

from gesso import loop, prior, settings
from gesso.arrays import Float32, Int64, Pixels
from gesso.data import buckets, many, remembered
from gesso.data.batches import Batches, Piece, held_out
from gesso.data.cache import Store
from gesso.data.check import check, cut
from gesso.data.dataset import Dataset, Prepared
from gesso.data.plan import Plan, by_group
from gesso.data.record import Record
from gesso.engines.engine import Engine, Trainable
from gesso.errors import DeviceError
from gesso.events import Saved, Started
from gesso.families.family import Family
from gesso.formats import pipeline
from gesso.gathering import class_pictures, store
from gesso.loop import Every
from gesso.models import ModelSource
from gesso.objective import own
from gesso.objective.losses import Loss
from gesso.objective.noise import Noise
from gesso.objective.objective import Objective
from gesso.objective.times import Times
from gesso.objective.weightings import Weighting
from gesso.results import Results
from gesso.resume import flatten
from gesso.schema import Recipe
from gesso.stop import Stop

Save = Callable[[int], Saved]


@dataclass(kw_only=True)
class Encoder:
    """The engine's encoders as the data side wants them: with the identity of what they compute."""

    engine: Engine
    image_identity: str
    text_identity: str
    cache_latents: bool
    cache_text: bool
    train_text: bool

    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]:
        return self.engine.encode_images(pixels)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        return self.engine.encode_text(captions)

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        return self.engine.tokens(captions)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe with its model and engine: the parts of a run are made from it."""

    recipe: Recipe
    out: Path
    source: ModelSource
    family: Family
    objective: Objective
    engine: Engine

    @cached_property
    def store(self) -> Store:
        return store(self.recipe)

    @property
    def side(self) -> int:
        """Width and height of the training pictures, in pixels; with buckets, of a square one."""
        return side(self.recipe, self.source, self.family)

    @property
    def parts(self) -> tuple[str, ...]:
        """The base model's components that decide what it computes."""
        encoders = (part for pair in self.family.encoders for part in pair)
        return (self.family.denoiser, self.family.autoencoder, *encoders)

    def load(self, scheduler: Mapping[str, object] = MappingProxyType({})) -> None:
        """The model into the engine, its scheduler changed as given."""
        parts = settings.whole_parts(self.recipe)
        chunks = self.recipe.train.caption_chunks
        self.engine.load(self.source.folder, self.family, parts=parts, scheduler=scheduler, chunks=chunks)

    def attach(self, *, keep_base: bool = False) -> Trainable:
        """What the recipe trains, made trainable; `keep_base` also where the recipe itself needs no teacher."""
        recipe = self.recipe
        return self.engine.attach(
            settings.adapter(recipe, self.family),
            settings.optim(recipe),
            settings.tokens(recipe),
            keep_base=keep_base or (bool(recipe.prior.prompt) and recipe.prior.kind == "teacher"),
        )

    def class_records(self, instances: Sequence[Record], progress: prior.Progress) -> Sequence[Record]:
        """What keeps the class as it is; none without pictures of the class or a prompt for it.

        The data's own pictures of the class; or pictures drawn with the model as it is where they are missing; or
        `instances` under the class's captions, for which the model is to answer as it does now.
        """
        if own := class_pictures(self.recipe):
            return own
        if not self.recipe.prior.prompt:
            return []
        if self.recipe.prior.kind == "teacher":
            return prior.taught(self.recipe.prior, instances)
        return prior.records(
            self.recipe.prior,
            self.out,
            seed=self.recipe.seed,
            side=self.side,
            base=" ".join(map(self.part_identity, self.parts)),
            engine=self.engine,
            progress=progress,
        )

    def encode(self, records: Sequence[Record], progress: prior.Progress) -> tuple[Dataset, Prepared]:
        """The data as the model sees it."""
        dataset = self.dataset(records)
        return dataset, dataset.prepare(progress)

    def dataset(self, records: Sequence[Record], *, exact: bool = False) -> Dataset:
        """The records as cached latents and captions; `exact` without any augmentation."""
        recipe = self.recipe
        text = [part for pair in self.family.encoders for part in pair]
        empty = ["zeros for no caption"] if self.family.drops_to_zeros(self.source.index) else []
        long = [f"{recipe.train.caption_chunks} chunks"] if recipe.train.caption_chunks > 1 else []
        encoder = Encoder(
            engine=self.engine,
            image_identity=f"{self.part_identity(self.family.autoencoder)} {self.engine.arithmetic}",
            text_identity=" ".join([*map(self.part_identity, text), self.engine.arithmetic, *empty, *long]),
            cache_latents=recipe.cache.latents,
            cache_text=recipe.cache.text,
            train_text=settings.trains_text(recipe),
        )
        return Dataset(
            records=records,
            width=self.side,
            height=self.side,
            buckets=settings.buckets(recipe, self.side),
            interpolation=recipe.train.interpolation,
            crop="center" if exact else recipe.train.crop,
            flip=False if exact else recipe.train.flip,
            caption_dropout=0.0 if exact else recipe.train.caption_dropout,
            seed=recipe.seed,
            encoder=encoder,
            store=self.store,
            geometry=self.family.geometry,
            readers=recipe.train.readers,
        )

    def held_out(self, records: Sequence[Record], progress: prior.Progress) -> tuple[list[Piece], Prepared]:
        """What is measured during the run: the records at fixed noise and timesteps."""
        if not records:
            return [], Prepared()
        dataset = self.dataset(records, exact=True)
        prepared = dataset.prepare(progress)
        scale, shift = self.family.scale(self.source.config(self.family.autoencoder))
        steps = held_out(
            dataset,
            objective=self.objective,
            timesteps=self.recipe.validate_.timesteps,
            batch=self.recipe.train.micro_batch or self.recipe.train.batch,
            scale=scale,
            shift=shift,
            seed=self.recipe.seed,
        )
        return steps, prepared

    def notes(self, dataset: Dataset, records: Sequence[Record]) -> list[str]:
        """What the user should know of the data, though it stops nothing."""
        counter, batch = self.engine.token_counts, self.recipe.train.batch
        own = [row for row in dataset.doubted if row < len(records)]
        looked_at = [records[row] for row in own] if dataset.trusting else records
        found = check(looked_at, self.recipe.data, fingerprints=dataset.pictures.fingerprints, counter=counter)
        if dataset.trusting:
            found += [many.said(len(records) - len(own)), *cut(many.sample(records), counter)]
        if dataset.buckets:
            found.append(buckets.said(many.table(records, dataset.buckets, dataset.pictures.size, batch), batch))
        return found

    def part_identity(self, part: str) -> str:
        """A component's identity; with a cache, its weights are read for it only once, and not at every start."""
        if not (self.recipe.cache.latents or self.recipe.cache.text):
            return pipeline.identity(self.source.folder, part)
        return pipeline.identity(self.source.folder, part, partial(remembered.sha256, store=self.store))

    def fingerprint(self) -> dict[str, object]:
        """What decides whether a checkpoint belongs to this run: every recipe key, and what files they stand for."""
        base = {f"base.{part}": self.part_identity(part) for part in self.parts}
        return {**flatten(self.recipe.as_toml()), **base, "precision": self.engine.precision}

    def batches(self, dataset: Dataset) -> Batches:
        """What each step learns from."""
        scale, shift = self.family.scale(self.source.config(self.family.autoencoder))
        return Batches(
            plan=Plan(
                seed=self.recipe.seed,
                rows=by_group(dataset.records),
                batch=self.recipe.train.batch,
                sizes=dataset.all_sizes(),
            ),
            dataset=dataset,
            objective=self.objective,
            scale=scale,
            shift=shift,
            prior_weight=self.recipe.prior.weight,
            teacher=self.recipe.prior.kind == "teacher",
        )

    def started(self, dataset: Dataset, prepared: Prepared, trainable: Trainable, start: int) -> Started:
        """The run in numbers, and in a line for people."""
        recipe, rows = self.recipe, {group: len(found) for group, found in by_group(dataset.records).items()}
        pictures = rows["instance"]
        device = f"{self.engine.device} · {self.engine.precision}"
        device += " · compiled, the first step takes long" if settings.compiled(recipe) else ""
        return Started(
            step=start,
            run=str(self.out),
            steps=recipe.train.steps,
            batch=recipe.train.batch,
            pictures=pictures,
            class_pictures=rows.get("class", 0) if recipe.prior.kind == "pictures" else 0,
            encoded=prepared.encoded + prepared.captions_encoded,
            from_cache=prepared.reused + prepared.captions_reused,
            trainable=trainable.total,
            what=f"{recipe.model.base} · {settings.what(recipe)} · {pictures} pictures · {device}",
            resumed=start > 0,
        )

    def plan(
        self, dataset: Dataset, validation: list[Piece], started: Started, results: Results, save: Save, stop: Stop
    ) -> loop.Plan:
        """The run as the loop wants it."""
        recipe, requests = self.recipe, settings.requests(self.recipe, self.side)
        return loop.Plan(
            started=started,
            engine=self.engine,
            batches=self.batches(dataset),
            courses=settings.courses(recipe),
            steps=recipe.train.steps,
            seed=recipe.seed,
            micro_batch=recipe.train.micro_batch,
            ema=recipe.optim.ema,
            averaged=settings.averages(recipe),
            start=started.step,
            held_out=validation,
            samples=requests,
            validate_when=Every(steps=recipe.validate_.every, active=bool(validation)),
            sample_when=Every(steps=recipe.sample.every, active=bool(requests)),
            save_when=Every(steps=recipe.save.every, at_start=False),
            keep_samples=results.keep_samples,
            save=save,
            finish=results.finish,
            stop=lambda: stop.reason,
            wait_when_full=recipe.save.on_full == "wait",
        )


def side(recipe: Recipe, source: ModelSource, family: Family) -> int:
    """The resolution in pixels: the recipe's, or the model's own."""
    return recipe.train.resolution or family.side(source.config(family.denoiser), source.config(family.autoencoder))


def create_engine(recipe: Recipe) -> Engine:
    """The engine that the recipe names: gesso/engines/<name>/engine.py."""
    try:
        module = import_module(f"gesso.engines.{recipe.engine}.engine")
    except (ImportError, OSError, RuntimeError) as error:  # PyTorch and diffusers turn the first into the others
        if recipe.engine != "torch" or str(getattr(error, "name", "")).startswith("gesso"):
            raise
        raise _without_torch(error) from error
    train = recipe.train
    own = recipe.mindspore.model_copy(update={"compile": settings.compiled(recipe)})
    options = own if recipe.engine == "mindspore" else recipe.torch
    made = module.create(
        options, device=train.device, precision=train.precision, checkpointing=train.gradient_checkpointing
    )
    return cast(Engine, made)


def _without_torch(error: Exception) -> DeviceError:
    """What to say where PyTorch's libraries are not here, or not in versions that go together."""
    other = 'set engine = "mindspore" where MindSpore is installed'
    if isinstance(error, ModuleNotFoundError):
        what = f'engine = "torch" needs {error.name}, which is not installed here'
        return DeviceError(what, todo=f"pip install {error.name}, or {other}")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DeviceError(
        f'engine = "torch": its libraries do not go together here: {first}',
        todo=f"`gesso doctor` names what is wrong; or {other}",
    )


def make_objective(recipe: Recipe, source: ModelSource) -> Objective:
    """The objective of the recipe on the model's own schedule."""
    table, scheduler = recipe.objective, source.config("scheduler")
    return Objective(
        schedule=own.from_scheduler(scheduler, zero_snr=table.zero_snr, edm_style=table.edm_style),
        prediction=own.prediction(scheduler, table.prediction),
        weighting=Weighting(name=table.weighting, gamma=table.gamma),
        loss=Loss(name=table.loss, huber_c=table.huber_c, schedule=table.huber_schedule),
        dream=table.dream_detail if table.dream else None,
        times=Times(
            name=table.times,
            multiplier=table.times_multiplier,
            portion=table.times_portion,
            begin=table.times_begin,
            end=table.times_end,
            mean=table.times_mean,
            std=table.times_std,
            scale=table.times_scale,
        ),
        noise=Noise(
            offset=table.noise_offset,
            offset_random=table.noise_offset_random,
            pyramid=table.pyramid_noise,
            layers=table.pyramid_levels,
            perturbation=table.input_perturbation,
            perturbation_random=table.input_perturbation_random,
        ),
    )
