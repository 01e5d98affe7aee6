"""What one key demands of another. No option may silently do nothing, and no two may contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gesso.recipe.keys import Given, Problem, keys
from gesso.schema import Recipe

GAMMA = ("min_snr", "soft_min_snr", "p2")
LAYERS = ("default", "file", "flag")
TOLD = ("cache.latents", "model.train")
"""Keys whose default, when it is written down, asks for something too."""


def broken(recipe: Recipe, given: Mapping[str, Given]) -> list[Problem]:
    """Every rule between keys that `recipe` breaks; `given` are the values a user wrote, for their places."""
    found = [*_data(recipe), *_batch(recipe), *_model(recipe), *_objective(recipe), *_rest(recipe)]
    return [*(_placed(problem, given) for problem in found), *_idle(recipe, given)]


def _placed(problem: Problem, given: Mapping[str, Given]) -> Problem:
    where = next((given[key].where for key in problem.keys if key in given), "")
    return Problem(text=problem.text, where=where, keys=problem.keys)


def _data(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.data:
        yield Problem(
            text='there are no pictures: add [[data]] with path = "photos", or --data.path photos', keys=("data",)
        )
    yield from _folders(recipe)
    if recipe.validate_.path and recipe.validate_.holdout:
        yield Problem(
            text="validate.path and validate.holdout are both given; held-out pictures are either a folder or a share",
            keys=("validate.holdout", "validate.path"),
        )


def _folders(recipe: Recipe) -> Iterator[Problem]:
    """Where gesso writes must be where the user meant, and never among the user's pictures."""
    for name, value in (("out", recipe.out), ("cache.path", recipe.cache.path)):
        if value.startswith("~"):
            yield Problem(
                text=f"{name} = {value}: only a shell expands ~, and only outside quotes; write {_home(value)}",
                keys=(name,),
            )
    out = _home(recipe.out).resolve()
    sources = {f"data.{index}.path": table.path for index, table in enumerate(recipe.data)}
    for name, path in {**sources, "prior.path": recipe.prior.path, "validate.path": recipe.validate_.path}.items():
        folder = _home(path).resolve()
        if path and (folder == out or folder in out.parents):
            yield Problem(
                text=f"out = {recipe.out} lies in the pictures' folder {path}, which gesso never writes to; "
                "choose another folder",
                keys=("out", name),
            )


def _home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody who is not known here: a folder of that name
        return Path(path)


def _batch(recipe: Recipe) -> Iterator[Problem]:
    batch, micro = recipe.train.batch, recipe.train.micro_batch
    if micro and batch % micro:
        parts = [part for part in range(1, batch + 1) if batch % part == 0]
        below, above = [p for p in parts if p < micro][-1:], [p for p in parts if p > micro][:1]
        yield Problem(
            text=f"train.micro_batch is {micro}, but must divide train.batch, which is {batch}; "
            f"the nearest are {' and '.join(map(str, below + above))}"
            if below and above
            else f"train.micro_batch is {micro}, but must divide train.batch, which is {batch}; at most {batch}",
            keys=("train.micro_batch", "train.batch"),
        )
    elif 0 < micro < batch and recipe.adapter.dropout > 0 and recipe.adapter.kind != "none":
        yield Problem(
            text=f"adapter.dropout is {recipe.adapter.dropout:g} and train.micro_batch is {micro}: a dropout mask is "
            "drawn for each micro-batch, so the run would depend on how a batch is split; leave one of the two out",
            keys=("adapter.dropout", "train.micro_batch"),
        )
    if recipe.optim.warmup >= recipe.train.steps:
        yield Problem(
            text=f"optim.warmup is {recipe.optim.warmup}, but must be below train.steps, which is {recipe.train.steps}",
            keys=("optim.warmup", "train.steps"),
        )


def _model(recipe: Recipe) -> Iterator[Problem]:
    if recipe.adapter.kind != "none" and "text_encoder" in recipe.model.train:
        yield Problem(
            text=f'adapter.kind = "{recipe.adapter.kind}" cannot train the text encoder, for adapters of text encoders '
            'are not available yet; set adapter.kind = "none", or leave "text_encoder" out of model.train',
            keys=("model.train", "adapter.kind"),
        )
    if recipe.model.revision and (recipe.model.base == "tiny" or Path(recipe.model.base).exists()):
        yield Problem(
            text=f"model.revision is for Hub ids, but model.base = {recipe.model.base} is here on this machine",
            keys=("model.revision", "model.base"),
        )


def _objective(recipe: Recipe) -> Iterator[Problem]:
    it = recipe.objective
    if it.zero_snr and it.prediction == "epsilon":
        yield Problem(
            text='epsilon cannot be predicted at zero terminal SNR; set objective.prediction = "v_prediction"',
            keys=("objective.prediction", "objective.zero_snr"),
        )
    if it.times == "range" and it.times_begin >= it.times_end:
        yield Problem(
            text=f"objective.times_begin is {it.times_begin}, but must be below times_end, which is {it.times_end}",
            keys=("objective.times_begin", "objective.times_end"),
        )
    if it.times != "uniform" and it.times_multiplier == 1.0:
        yield Problem(
            text=f'objective.times = "{it.times}" has no effect while objective.times_multiplier is 1; '
            "3 draws the favoured timesteps three times as often",
            keys=("objective.times", "objective.times_multiplier"),
        )


def _rest(recipe: Recipe) -> Iterator[Problem]:
    for name, values in (("sample.seeds", recipe.sample.seeds), ("sample.prompts", recipe.sample.prompts)):
        if len(set(values)) < len(values):
            yield Problem(text=f"{name} has the same item twice, which would draw the same picture", keys=(name,))
    if recipe.cache.path and not (recipe.cache.latents or recipe.cache.text):
        yield Problem(
            text="cache.path has no effect while cache.latents and cache.text are both off", keys=("cache.path",)
        )


def _idle(recipe: Recipe, given: Mapping[str, Given]) -> Iterator[Problem]:
    """Keys that do nothing because of another. What a flag switches off over the file may stay in the file."""
    for names, active, reason, *switches in _switches(recipe):
        off = max((LAYERS.index(given[switch].origin) for switch in switches if switch in given), default=0)
        for name in names:
            asked = name in given and (name in TOLD or given[name].value != keys()[name].default)
            if asked and not active and off <= LAYERS.index(given[name].origin):
                text = f"{name} has no effect {reason}"
                yield Problem(text=text, where=given[name].where, keys=(name, *switches))


def _switches(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], bool, str, *tuple[str, ...]]]:
    """(keys, whether they act, why not otherwise, the keys that decide)."""
    it, optim, held = recipe.objective, recipe.optim, recipe.validate_
    measured = bool(held.path or held.holdout)
    yield (
        _others("prior", "prompt"),
        bool(recipe.prior.prompt),
        "without prior.prompt, the class in words",
        "prior.prompt",
    )
    yield _others("sample", "prompts"), bool(recipe.sample.prompts), "without sample.prompts", "sample.prompts"
    yield (
        ("objective.gamma",),
        it.weighting in GAMMA,
        f'with objective.weighting = "{it.weighting}"',
        "objective.weighting",
    )
    reason = f'with objective.times = "{it.times}"'
    yield ("objective.times_multiplier",), it.times != "uniform", reason, "objective.times"
    yield ("objective.times_portion",), it.times in ("earlier", "later"), reason, "objective.times"
    yield ("objective.times_begin", "objective.times_end"), it.times == "range", reason, "objective.times"
    reason = f'with optim.schedule = "{optim.schedule}"'
    yield ("optim.cycles",), optim.schedule == "cosine_with_restarts", reason, "optim.schedule"
    yield ("optim.power",), optim.schedule == "polynomial", reason, "optim.schedule"
    yield ("optim.eps",), optim.name != "sgd", 'with optim.name = "sgd"', "optim.name"
    sgd = optim.name == "sgd"
    yield (
        ("optim.betas",),
        not sgd or optim.betas[1] == keys()["optim.betas"].default[1],
        'in its second number with optim.name = "sgd"',
        "optim.name",
    )
    reason = "without validate.path or validate.holdout"
    yield ("validate.every", "validate.timesteps"), measured, reason, "validate.path", "validate.holdout"
    yield ("validate.prompt",), bool(held.path), "without validate.path", "validate.path"
    yield from _of_parts(recipe)


def _of_parts(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], bool, str, *tuple[str, ...]]]:
    """The same, of the model, the engine and the cache."""
    kind, train = recipe.adapter.kind, recipe.train
    yield _others("adapter", "kind"), kind != "none", f'with adapter.kind = "{kind}"', "adapter.kind"
    # With an adapter, "text_encoder" among the parts is refused by a rule of its own.
    full = kind == "none" or "text_encoder" in recipe.model.train
    yield ("model.train",), full, f'with adapter.kind = "{kind}"; "none" trains the model itself', "adapter.kind"
    torch, reason = recipe.engine == "torch", f'with engine = "{recipe.engine}"'
    yield _others("torch", ""), torch, reason, "engine"
    yield ("train.gradient_checkpointing",), torch, reason, "engine"
    yield ("train.precision",), torch or train.precision in ("auto", "fp32"), reason, "engine"
    yield ("train.device",), torch or train.device in ("auto", "cpu"), reason, "engine"
    latents = train.crop == "center" or not recipe.cache.latents
    yield (
        ("cache.latents",),
        latents,
        f'with train.crop = "{train.crop}", whose crops are never drawn twice',
        "train.crop",
    )


def _others(table: str, but: str) -> tuple[str, ...]:
    return tuple(name for name in keys() if name.startswith(f"{table}.") and name != f"{table}.{but}")
