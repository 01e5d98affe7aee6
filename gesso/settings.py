"""What a recipe says, as the values that the engine and the loop take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from gesso import samplers
from gesso.data.buckets import Buckets, usual
from gesso.data.sources import text
from gesso.engines.engine import Adapter, Optim, Rule, SampleRequest, Token
from gesso.errors import DataError, RecipeError
from gesso.families.family import Family
from gesso.rates import Course, Rate
from gesso.schema import Recipe, SampleTable, Save, Validate

TOKENS = "tokens"
"""The group of the new words, beside the groups that are parts of the model."""


def settled(recipe: Recipe, rows: int) -> Recipe:
    """The recipe in steps and prompts alone: epochs of `rows` pictures counted out, the prompts' file read.

    An epoch ends with the step that has seen every picture; what happens every so many epochs happens every so many
    whole steps, rounded up. RecipeError where what follows cannot be carried out.
    """
    train, sample = recipe.train, recipe.sample
    if train.epochs is not None:
        train = train.model_copy(update={"steps": in_steps(train.epochs, rows, train.batch), "epochs": None})
        if recipe.optim.warmup >= train.steps:
            raise RecipeError(
                f"optim.warmup is {recipe.optim.warmup}, but train.epochs = {recipe.train.epochs:g} are {train.steps} "
                f"steps of {train.batch} out of {rows} pictures",
                todo="warm up over fewer steps, or train for longer",
            )
    _turns(recipe, train.steps)
    if sample.prompts_file:
        sample = sample.model_copy(update={"prompts": _all_prompts(sample), "prompts_file": ""})
    if recipe.prior.captions:
        lines(Path(recipe.prior.captions), "prior.captions")  # better now than after the model has been loaded
    tables: dict[str, SampleTable | Validate | Save] = {
        "sample": sample,
        "validate_": recipe.validate_,
        "save": recipe.save,
    }
    for name, table in tables.items():
        if table.every_epochs:
            steps = in_steps(table.every_epochs, rows, train.batch)
            tables[name] = table.model_copy(update={"every": steps, "every_epochs": 0.0})
    return recipe.model_copy(update={"train": train, **tables})


def _turns(recipe: Recipe, steps: int) -> None:
    """RecipeError where adapter.pivot leaves the words or the adapter no step, or warms one of the two up all along."""
    if recipe.adapter.kind == "ti":  # the words learn alone, whatever a file still says of a pivot
        return
    turn = round(recipe.adapter.pivot * steps)
    shorter = min(turn, steps - turn)
    if recipe.adapter.pivot and shorter <= recipe.optim.warmup:
        short, choose = ("words", "more") if turn == shorter else ("adapter", "less")
        raise RecipeError(
            f"adapter.pivot is {recipe.adapter.pivot:g}, which of {steps} steps leaves the {short} {shorter}, "
            + (f"all of them optim.warmup, which is {recipe.optim.warmup}" if shorter else "which learns nothing"),
            todo=f"train for more steps, or take {choose} for adapter.pivot",
        )


def _all_prompts(sample: SampleTable) -> tuple[str, ...]:
    """The recipe's prompts and then those of its file; RecipeError where one is there twice."""
    prompts = (*sample.prompts, *lines(Path(sample.prompts_file), "sample.prompts_file"))
    twice = next((prompt for prompt in prompts if prompts.count(prompt) > 1), None)
    if twice is not None:
        raise RecipeError(
            f'sample.prompts_file: the prompt "{twice}" is there twice, counting sample.prompts, which would draw the '
            "same picture",
            where=sample.prompts_file,
            todo="leave it out once; sample.seeds draws a prompt several times",
        )
    return prompts


def in_steps(epochs: float, rows: int, batch: int) -> int:
    """The steps of `batch` in which each of `rows` pictures is seen `epochs` times, rounded up."""
    return max(math.ceil(epochs * rows / batch - 1e-9), 1)


def lines(path: Path, key: str) -> list[str]:
    """The texts of the file that `key` names, one a line, without empty lines.

    RecipeError for a file that cannot be read, is not text, or holds none.
    """
    where = str(path)
    try:
        found = [text.clean(each, where) for each in text.read(path, where).splitlines()]
    except DataError as error:
        raise RecipeError(
            f"{key}: {error.what}", where=where, todo="name a file of UTF-8 text, one prompt or caption on each line"
        ) from error
    if not any(found):
        raise RecipeError(f"{key}: the file holds no text", where=where, todo="write one on each line")
    return [each for each in found if each]


def adapter(recipe: Recipe, family: Family) -> Adapter | None:
    """The adapters of the parts that learn; None where the weights themselves, or new words alone, do."""
    table = recipe.adapter
    if table.kind in ("none", "ti"):
        return None
    targets: dict[str, tuple[str, ...]] = {
        part: (table.targets or family.lora_targets)
        if part == family.denoiser
        else (table.text_targets or family.text_lora_targets)
        for part in recipe.model.train
    }
    oft = table.kind == "oft"
    rules = tuple(
        Rule(match=rule.match, rank=rule.rank, alpha=rule.alpha, dropout=rule.dropout, skip=rule.skip)
        for rule in recipe.rules
    )
    return Adapter(
        kind=table.kind,
        rank=table.rank,
        # An oft has neither; what a flag switched off may still stand in the file.
        alpha=float(table.rank) if oft else table.alpha or float(table.rank),
        dropout=0.0 if oft else table.dropout,
        targets=targets,
        rules=rules,
        factor=table.factor,
        init=recipe.seed,
    )


def buckets(recipe: Recipe, side: int) -> Buckets | None:
    """The sizes of pictures around the resolution `side`, None where all are squares. RecipeError if none would fit."""
    train = recipe.train
    if not train.buckets:
        return None
    return usual(
        side,
        step=train.bucket_step,
        smallest=train.bucket_min,
        largest=train.bucket_max,
        enlarge=train.bucket_enlarge,
    )


def whole_parts(recipe: Recipe) -> tuple[str, ...]:
    """The parts whose own weights learn."""
    return recipe.model.train if recipe.adapter.kind == "none" else ()


def trains_text(recipe: Recipe) -> bool:
    """Whether a text encoder or a word learns, so that captions cannot be encoded beforehand."""
    parts = () if recipe.adapter.kind == "ti" else recipe.model.train
    return bool(recipe.tokens) or any(part.startswith("text_encoder") for part in parts)


def fits(recipe: Recipe, family: Family) -> None:
    """RecipeError where the recipe names a part that models of this family do not have."""
    own = (family.denoiser, *(encoder for encoder, _ in family.encoders))
    for part in recipe.model.train:
        if part not in own:
            raise RecipeError(
                f"model.train names {part}, which a model of the family {family.name} does not have",
                todo=f"its parts are {', '.join(own)}",
            )


def can_draw(recipe: Recipe, scheduler: str) -> None:
    """RecipeError where samples cannot be drawn with sample.scheduler by a model whose own scheduler class is given."""
    if recipe.sample.scheduler:
        samplers.read(recipe.sample.scheduler, scheduler, recipe.objective.prediction)


def tokens(recipe: Recipe) -> tuple[Token, ...]:
    return tuple(
        Token(name=each.name, init=each.init, vectors=each.vectors, seed=recipe.seed) for each in recipe.tokens
    )


def optim(recipe: Recipe) -> Optim:
    table = recipe.optim
    text_decay = table.text_encoder_weight_decay
    return Optim(
        name=table.name,
        betas=table.betas,
        beta3=table.beta3,
        eps=table.eps,
        weight_decay=table.weight_decay,
        text_weight_decay=table.weight_decay if text_decay is None else text_decay,
        decouple=table.decouple,
        bias_correction=table.bias_correction,
        safeguard_warmup=table.safeguard_warmup,
        clip=table.clip,
        ema=table.ema > 0,
        ema_offload=table.ema_offload,
    )


def averages(recipe: Recipe) -> bool:
    """Whether averaged weights are the result."""
    return recipe.optim.ema > 0 or recipe.optim.name == "adamw_schedule_free"


def courses(recipe: Recipe) -> dict[str, Course]:
    """The learning rate of each group that learns, over the steps in which it does.

    With adapter.pivot the new words learn first and the adapters after them (pivotal tuning, Roich et al. 2021,
    arXiv:2106.05744): each phase has the whole schedule, warm-up included.
    """
    table, steps = recipe.optim, recipe.train.steps
    groups = () if recipe.adapter.kind == "ti" else recipe.model.train
    turn = round(recipe.adapter.pivot * steps) if groups else 0
    text_lr = table.text_encoder_lr or table.lr
    own = {
        "text_encoder": text_lr,
        "text_encoder_2": table.text_encoder_2_lr or text_lr,
        TOKENS: table.token_lr or table.lr,
    }
    spans: dict[str, range] = {group: range(turn, steps) for group in groups}
    if recipe.tokens:
        spans[TOKENS] = range(turn or steps)
    return {
        group: Course(
            steps=span,
            rate=Rate(
                lr=own.get(group, table.lr),
                name=table.schedule,
                steps=len(span),
                warmup=table.warmup,
                cycles=table.cycles,
                power=table.power,
            ),
        )
        for group, span in spans.items()
    }


def requests(recipe: Recipe, side: int) -> list[SampleRequest]:
    """Every prompt with every seed; `side` in pixels where the recipe names no size."""
    table = recipe.sample
    return [
        SampleRequest(
            prompt=prompt,
            seed=seed,
            negative=table.negative,
            width=table.width or side,
            height=table.height or side,
            steps=table.steps,
            guidance=table.guidance,
            scheduler=table.scheduler,
        )
        for prompt in table.prompts
        for seed in table.seeds
    ]


def compiled(recipe: Recipe) -> bool:
    """Whether training steps are compiled, so that the first takes long."""
    if recipe.engine != "mindspore" or recipe.mindspore.compile is not None:
        return bool(recipe.mindspore.compile if recipe.engine == "mindspore" else recipe.torch.compile)
    train = recipe.train
    return not (drops(recipe) or train.buckets or train.caption_chunks != 1 or train.gradient_checkpointing)


def drops(recipe: Recipe) -> list[str]:
    """The keys that make an adapter's layers drop what they are given now and then."""
    own = [f"rules.{index}.dropout" for index, rule in enumerate(recipe.rules) if rule.dropout]
    return ["adapter.dropout", *own] if recipe.adapter.dropout else own


def what(recipe: Recipe) -> str:
    """What learns, in a few words."""
    kind, parts = recipe.adapter.kind, " + ".join(recipe.model.train)
    words = ", ".join(each.name for each in recipe.tokens)
    learns: Iterable[str] = {
        "none": [f"full {parts}"],
        "ti": [f"the words {words}"],
    }.get(kind, [kind if parts == "unet" else f"{kind} of {parts}", *([f"the words {words}"] if words else [])])
    return ", ".join(learns)
