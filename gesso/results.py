"""What a run leaves: samples, checkpoints, and the trained model in the layout that diffusers reads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gesso import settings
from gesso.arrays import Array, Picture
from gesso.checkpoint import Checkpoint, Checkpoints, Content
from gesso.engines.engine import Engine, SampleRequest
from gesso.engines.layers import settle
from gesso.events import Sample, Saved
from gesso.families import find
from gesso.formats import adapter, card, embeddings, pipeline, png
from gesso.formats.metadata import Config
from gesso.models import ModelSource, scheduler_changes
from gesso.schema import Recipe
from gesso.words import parted

Weights = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Writes what the engine holds into the run folder `out`."""

    out: Path
    source: ModelSource
    recipe: Recipe
    engine: Engine
    fingerprint: Mapping[str, object]
    """What a run that goes on from a checkpoint must have in common with it."""
    pictures: int = 0

    # ---------------------------------------------------------------- samples

    def keep_samples(self, step: int, requests: Sequence[SampleRequest], pictures: Sequence[Picture]) -> list[Sample]:
        """samples/step-N/pPP-sSEED.png, each with what made it."""
        kept = []
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        for request, picture in zip(requests, pictures, strict=True):
            file = f"samples/step-{step}/p{prompts.index(request.prompt):02d}-s{request.seed}.png"
            (self.out / file).parent.mkdir(parents=True, exist_ok=True)
            png.write(self.out / file, picture, {**request.as_dict(), "model": self.recipe.out, "step": step})
            kept.append(Sample(prompt=request.prompt, seed=request.seed, file=file))
        return kept

    # ---------------------------------------------------------------- checkpoints

    def save(self, checkpoints: Checkpoints, step: int) -> Saved:
        """Publish checkpoint-`step`."""
        began = time.monotonic()
        state = self.engine.read()
        files: dict[str, Content] = {"optimizer.safetensors": state["optimizer"]}
        if "ema" in state:
            files["ema.safetensors"] = state["ema"]
        files |= self._weight_files(state["weights"])
        folder = checkpoints.save(step, files, {"recipe": dict(self.fingerprint)})
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return Saved(step=step, folder=folder.name, bytes=size, seconds=time.monotonic() - began)

    def load(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's state back into the engine."""
        folder = checkpoint.folder
        state = {"weights": self._read_weights(folder), "optimizer": checkpoint.arrays("optimizer.safetensors")}
        if (folder / "ema.safetensors").is_file():
            state["ema"] = checkpoint.arrays("ema.safetensors")
        self.engine.write(state)

    def _weight_files(self, weights: Weights) -> dict[str, Content]:
        words, weights = parted(weights)
        return {**embeddings.writers(words), **self._other_files(weights)}

    def _other_files(self, weights: Weights) -> dict[str, Content]:
        if self.recipe.adapter.kind == "ti":
            return {}
        if self.recipe.adapter.kind != "none":
            return {**adapter.writers(weights, self._adapter_config(weights))}
        return {
            f"{part}/{name}": write
            for part, arrays in by_part(weights).items()
            for name, write in pipeline.part_files(self.source.folder, part, arrays).items()
        }

    def _read_weights(self, folder: Path) -> dict[str, Array]:
        words = embeddings.read(embeddings.files(folder)) if self.recipe.tokens else {}
        return {**words, **self._read_others(folder)}

    def _read_others(self, folder: Path) -> dict[str, Array]:
        if self.recipe.adapter.kind == "ti":
            return {}
        if self.recipe.adapter.kind != "none":
            return adapter.renamed(adapter.read(folder)[0], self.engine.read()["weights"])
        return {
            f"{part}.{name}": value
            for part in self.recipe.model.train
            for name, value in pipeline.read_part(folder / part).items()
        }

    def _adapter_config(self, weights: Weights) -> Config:
        """What the recipe makes of each adapter that there is."""
        chosen = settings.adapter(self.recipe, find(self.source.pipeline))
        assert chosen is not None
        layers = {module: settle(chosen, *module.split(".", 1)) for module in adapter.modules(weights)}
        sizes = {module: (layer.rank, layer.alpha) for module, layer in layers.items()}
        return Config.of(sizes, kind=chosen.kind, factor=chosen.factor)

    # ---------------------------------------------------------------- the result

    def finish(self) -> list[str]:
        """The trained model in `out` itself, with a model card. Averaged weights, where there are any."""
        state = self.engine.read()
        words, weights = parted(state.get("ema") or state["weights"])
        changes = scheduler_changes(self.recipe.objective)
        if self.recipe.adapter.kind == "ti":
            files = []
        elif self.recipe.adapter.kind != "none":
            writers = adapter.writers(weights, self._adapter_config(weights))
            for name, write in writers.items():
                (self.out / name).parent.mkdir(exist_ok=True)
                write(self.out / name)
            files = list(writers)
        else:
            pipeline.assemble(self.source.folder, self.out, by_part(weights), changes)
            files = ["model_index.json"]
        for name, write in embeddings.writers(words).items():
            write(self.out / name)
            files.append(name)
        card.write(self.out, self.recipe, files, base=self.source.folder, pictures=self.pictures, scheduler=changes)
        return files


def by_part(weights: Weights) -> dict[str, dict[str, Array]]:
    """`unet.conv_in.weight` → {"unet": {"conv_in.weight": …}}."""
    found: dict[str, dict[str, Array]] = {}
    for name, value in weights.items():
        part, rest = name.split(".", 1)
        found.setdefault(part, {})[rest] = value
    return found
