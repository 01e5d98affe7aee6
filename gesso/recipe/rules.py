"""What one key demands of another. No option may silently do nothing, and no two may contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gesso.recipe import methods, objectives, sources
from gesso.recipe.keys import Given, Problem, keys
from gesso.schema import Recipe

LAYERS = ("default", "file", "flag")
TOLD = ("cache.latents", "model.train")
"""Keys whose default, when it is written down, asks for something too."""


def broken(recipe: Recipe, given: Mapping[str, Given]) -> list[Problem]:
    """Every rule between keys that `recipe` breaks; `given` are the values a user wrote, for their places."""
    found = [*_data(recipe), *_batch(recipe), *_model(recipe), *_rest(recipe)]
    found += [*objectives.broken(recipe), *methods.broken(recipe)]
    return [*(_placed(problem, given) for problem in found), *idle(recipe, given)]


def _placed(problem: Problem, given: Mapping[str, Given]) -> Problem:
    where = next((given[key].where for key in problem.keys if key in given), "")
    return Problem(text=problem.text, where=where, keys=problem.keys)


def _data(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.data:
        yield Problem(
            text='there are no pictures: add [[data]] with path = "photos", or --data.path photos', keys=("data",)
        )
    yield from _folders(recipe)
    yield from sources.broken(recipe)
    for index, table in enumerate(recipe.data):
        tags = ("shuffle", "tag_dropout")
        for name, switches in (("keep_tokens", tags), ("separator", tags), ("unmasked_weight", ("masks",))):
            off = not any(getattr(table, switch) for switch in switches)
            if off and getattr(table, name) != keys()[f"data.{name}"].default:
                yield Problem(
                    text=f"data.{index}.{name} has no effect without data.{index}.{' or '.join(switches)}",
                    keys=(f"data.{index}.{name}",),
                )
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
    paths = {f"data.{index}.path": table.path for index, table in enumerate(recipe.data)}
    for name, path in {**paths, "prior.path": recipe.prior.path, "validate.path": recipe.validate_.path}.items():
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
    elif 0 < micro < batch and recipe.adapter.kind in methods.DROPPING:
        shares = {"adapter.dropout": recipe.adapter.dropout}
        shares |= {f"rules.{index}.dropout": rule.dropout or 0.0 for index, rule in enumerate(recipe.rules)}
        for name, share in shares.items():
            if share:
                yield Problem(
                    text=f"{name} is {share:g} and train.micro_batch is {micro}: a dropout mask is drawn for each "
                    "micro-batch, so the run would depend on how a batch is split; leave one of the two out",
                    keys=(name, "train.micro_batch"),
                )
    if recipe.train.epochs is None and recipe.optim.warmup >= recipe.train.steps:
        yield Problem(
            text=f"optim.warmup is {recipe.optim.warmup}, but must be below train.steps, which is {recipe.train.steps}",
            keys=("optim.warmup", "train.steps"),
        )


def _model(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.revision and (recipe.model.base == "tiny" or Path(recipe.model.base).exists()):
        yield Problem(
            text=f"model.revision is for Hub ids, but model.base = {recipe.model.base} is here on this machine",
            keys=("model.revision", "model.base"),
        )
    if recipe.model.like and not Path(recipe.model.base).expanduser().is_file():
        yield Problem(
            text=f"model.like is for a base in one file, and model.base = {recipe.model.base} is none",
            keys=("model.like", "model.base"),
        )


def _rest(recipe: Recipe) -> Iterator[Problem]:
    for name, values in (("sample.seeds", recipe.sample.seeds), ("sample.prompts", recipe.sample.prompts)):
        if len(set(values)) < len(values):
            yield Problem(text=f"{name} has the same item twice, which would draw the same picture", keys=(name,))
    if recipe.cache.path and not (recipe.cache.latents or recipe.cache.text):
        yield Problem(
            text="cache.path has no effect while cache.latents and cache.text are both off", keys=("cache.path",)
        )


def idle(recipe: Recipe, given: Mapping[str, Given]) -> Iterator[Problem]:
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
    optim, held = recipe.optim, recipe.validate_
    measured = bool(held.path or held.holdout)
    yield from sources.switches(recipe)
    drawn = bool(recipe.sample.prompts or recipe.sample.prompts_file)
    yield _others("sample", "prompts"), drawn, "without sample.prompts or sample.prompts_file", "sample.prompts"
    yield from objectives.switches(recipe)
    reason = f'with optim.schedule = "{optim.schedule}"'
    yield ("optim.cycles",), optim.schedule == "cosine_with_restarts", reason, "optim.schedule"
    yield ("optim.power",), optim.schedule == "polynomial", reason, "optim.schedule"
    named = f'with optim.name = "{optim.name}"'
    yield ("optim.eps",), optim.name not in ("sgd", "adafactor", "lion"), named, "optim.name"
    yield ("optim.betas",), optim.name != "adafactor", named, "optim.name"
    sgd = optim.name == "sgd"
    yield (
        ("optim.betas",),
        not sgd or optim.betas[1] == keys()["optim.betas"].default[1],
        'in its second number with optim.name = "sgd"',
        "optim.name",
    )
    reason = "without validate.path or validate.holdout"
    yield (
        ("validate.every", "validate.every_epochs", "validate.timesteps"),
        measured,
        reason,
        "validate.path",
        "validate.holdout",
    )
    yield ("validate.prompt",), bool(held.path), "without validate.path", "validate.path"
    yield ("hub.private",), bool(recipe.hub.push), "without hub.push", "hub.push"
    yield from _of_parts(recipe)


def _of_parts(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], bool, str, *tuple[str, ...]]]:
    """The same, of the model, the engine and the cache."""
    yield from methods.switches(recipe)
    train = recipe.train
    real, reason = recipe.engine != "reference", f'with engine = "{recipe.engine}"'
    yield _others("torch", ""), recipe.engine == "torch", reason, "engine"
    yield _others("mindspore", ""), recipe.engine == "mindspore", reason, "engine"
    yield ("train.gradient_checkpointing",), real, reason, "engine"
    yield ("train.precision",), real or train.precision in ("auto", "fp32"), reason, "engine"
    yield ("train.device",), real or train.device in ("auto", "cpu"), reason, "engine"
    names = ("train.bucket_step", "train.bucket_min", "train.bucket_max", "train.bucket_enlarge")
    yield names, train.buckets, "without train.buckets", "train.buckets"
    own = "without train.bucket_enlarge: smaller pictures keep their own size"
    yield names[1:3], train.bucket_enlarge or not train.buckets, own, "train.bucket_enlarge"
    latents = train.crop == "center" or not recipe.cache.latents
    yield (
        ("cache.latents",),
        latents,
        f'with train.crop = "{train.crop}", whose crops are never drawn twice',
        "train.crop",
    )


def _others(table: str, but: str) -> tuple[str, ...]:
    return tuple(name for name in keys() if name.startswith(f"{table}.") and name != f"{table}.{but}")
