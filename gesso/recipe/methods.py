"""What the choice of a method (adapter, words, optimiser, preservation) demands of other keys."""

from __future__ import annotations

from collections.abc import Iterator

from gesso.recipe import mindspore
from gesso.recipe.keys import Problem
from gesso.schema import Recipe

Switch = tuple[tuple[str, ...], bool, str, *tuple[str, ...]]
"""(keys, whether they act, why not otherwise, the keys that decide)."""
LAYERED = ("lora", "dora", "loha", "lokr", "oft")
"""Adapters that sit on layers."""
DROPPING = tuple(kind for kind in LAYERED if kind != "oft")
"""Those that have alpha and dropout."""
PRODIGY = ("optim.beta3", "optim.decouple", "optim.bias_correction", "optim.safeguard_warmup")
REFERENCE = "the reference engine, which is for tests, "


def broken(recipe: Recipe) -> Iterator[Problem]:
    """Choices that contradict each other."""
    yield from _rules(recipe)
    yield from _tokens(recipe)
    yield from _parts(recipe)
    yield from _optim(recipe)
    yield from _durations(recipe)
    if recipe.engine == "reference":
        yield from _reference(recipe)
    if recipe.engine == "mindspore":
        yield from mindspore.broken(recipe)


def _rules(recipe: Recipe) -> Iterator[Problem]:
    kind = recipe.adapter.kind
    for index, rule in enumerate(recipe.rules):
        key = f"rules.{index}.match"
        says = [name for name in ("rank", "alpha", "dropout") if getattr(rule, name) is not None]
        if kind not in LAYERED:
            yield Problem(text=f'[[rules]] are for adapters, and adapter.kind is "{kind}"', keys=(key, "adapter.kind"))
        elif not says and not rule.skip:
            yield Problem(
                text=f'the rule for "{rule.match}" changes nothing; give it rank, alpha, dropout or skip', keys=(key,)
            )
        elif says and rule.skip:
            yield Problem(
                text=f'the rule for "{rule.match}" skips its layers and yet gives them {" and ".join(says)}',
                keys=(key, f"rules.{index}.skip"),
            )
        elif kind == "oft" and rule.rank is not None:
            yield Problem(text="oft has one number of blocks; leave rank out of it", keys=(f"rules.{index}.rank",))
        elif rule.alpha is not None and kind == "oft":
            yield Problem(text="oft has no alpha; leave it out of the rule", keys=(f"rules.{index}.alpha",))
        elif rule.dropout is not None and kind == "oft":
            yield Problem(text="oft has no dropout; leave it out of the rule", keys=(f"rules.{index}.dropout",))


def _tokens(recipe: Recipe) -> Iterator[Problem]:
    kind = recipe.adapter.kind
    if kind == "ti" and not recipe.tokens:
        yield Problem(
            text='adapter.kind = "ti" learns new words, and there are none: add [[tokens]] with name = "<dog>"',
            keys=("adapter.kind", "tokens"),
        )
    if kind == "none" and recipe.tokens:
        yield Problem(
            text='[[tokens]] are learned alone (adapter.kind = "ti") or with an adapter, not with kind "none"',
            keys=("adapter.kind", "tokens.0.name"),
        )
    names = [each.name for each in recipe.tokens]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield Problem(text=f'[[tokens]] has the word "{name}" twice', keys=("tokens.0.name",))


def _parts(recipe: Recipe) -> Iterator[Problem]:
    parts = recipe.model.train
    for part in dict.fromkeys(parts):
        if parts.count(part) > 1:
            yield Problem(text=f"model.train names {part} twice", keys=("model.train",))
    if recipe.adapter.factor == 0:
        yield Problem(
            text="adapter.factor is 0, but must be above 0, or -1 for the most even", keys=("adapter.factor",)
        )


def _optim(recipe: Recipe) -> Iterator[Problem]:
    optim = recipe.optim
    if optim.name == "prodigy" and optim.lr < 0.1:
        yield Problem(
            text=f"optim.lr is {optim.lr:g}, but prodigy finds the learning rate itself and takes lr as a factor; "
            "set optim.lr = 1",
            keys=("optim.lr", "optim.name"),
        )
    if optim.name == "prodigy":
        for name in ("text_encoder_lr", "text_encoder_2_lr", "token_lr"):
            if getattr(optim, name) not in (None, optim.lr):
                yield Problem(
                    text=f"optim.{name} differs from optim.lr, but prodigy has one step size for all that learns",
                    keys=(f"optim.{name}", "optim.name"),
                )
    if optim.name == "adamw_8bit" and recipe.torch.channels_last:
        yield Problem(
            text="adamw_8bit lays the weights that it trains out plainly, which undoes torch.channels_last",
            keys=("torch.channels_last", "optim.name"),
        )
    if optim.name == "adamw_schedule_free":
        if not optim.betas[0]:
            yield Problem(
                text="optim.betas begins with 0, but adamw_schedule_free needs a number above 0 there",
                keys=("optim.betas", "optim.name"),
            )
        if optim.ema:
            yield Problem(
                text="optim.ema and adamw_schedule_free both average the weights; leave one of the two out",
                keys=("optim.ema", "optim.name"),
            )
        if not optim.schedule.startswith("constant"):
            yield Problem(
                text=f'adamw_schedule_free stands in for a schedule; optim.schedule = "{optim.schedule}" must be '
                '"constant"',
                keys=("optim.schedule", "optim.name"),
            )


def _durations(recipe: Recipe) -> Iterator[Problem]:
    for name, table in (("sample", recipe.sample), ("validate", recipe.validate_), ("save", recipe.save)):
        default = type(table).model_fields["every"].default
        if table.every_epochs and table.every != default:
            yield Problem(
                text=f"{name}.every and {name}.every_epochs are both given; one of them says when",
                keys=(f"{name}.every", f"{name}.every_epochs"),
            )


def _reference(recipe: Recipe) -> Iterator[Problem]:
    adapter, objective = recipe.adapter, recipe.objective
    asked = {
        f'adapter.kind = "{adapter.kind}"': (adapter.kind not in ("lora", "none"), "adapter.kind"),
        "[[rules]]": (bool(recipe.rules), "rules.0.match"),
        "[[tokens]]": (bool(recipe.tokens), "tokens.0.name"),
        f"model.train = {list(recipe.model.train)}": (recipe.model.train != ("unet",), "model.train"),
        f'objective.loss = "{objective.loss}"': (objective.loss != "l2", "objective.loss"),
        "objective.dream": (objective.dream, "objective.dream"),
        'prior.kind = "teacher"': (recipe.prior.kind == "teacher", "prior.kind"),
        f'optim.name = "{recipe.optim.name}"': (recipe.optim.name != "adamw", "optim.name"),
    }
    for what, (given, key) in asked.items():
        if given:
            yield Problem(text=f"{REFERENCE}does not have {what}", keys=(key, "engine"))


def switches(recipe: Recipe) -> Iterator[Switch]:
    """Keys that act with some choices only."""
    kind, optim, prior = recipe.adapter.kind, recipe.optim, recipe.prior
    reason = f'with adapter.kind = "{kind}"'
    text = [part for part in recipe.model.train if part.startswith("text_encoder")] if kind != "ti" else []
    yield ("adapter.rank", "adapter.targets"), kind in LAYERED, reason, "adapter.kind"
    yield ("adapter.alpha", "adapter.dropout"), kind in DROPPING, reason, "adapter.kind"
    yield ("adapter.factor",), kind == "lokr", reason, "adapter.kind"
    yield ("model.train",), kind != "ti", reason, "adapter.kind"
    no_text = "without a text encoder in model.train"
    yield ("adapter.text_targets",), kind in LAYERED and bool(text), no_text, "model.train", "adapter.kind"
    yield (
        ("adapter.pivot",),
        kind in LAYERED and bool(recipe.tokens),
        "without both [[tokens]] and an adapter",
        "adapter.kind",
    )
    yield (
        ("optim.text_encoder_lr", "optim.text_encoder_weight_decay"),
        bool(text),
        no_text,
        "model.train",
        "adapter.kind",
    )
    two = "text_encoder_2" in text
    yield ("optim.text_encoder_2_lr",), two, "without text_encoder_2 in model.train", "model.train", "adapter.kind"
    yield ("optim.token_lr",), bool(recipe.tokens), "without [[tokens]]"
    yield from _decay(recipe, () if kind == "ti" else recipe.model.train)
    yield PRODIGY, optim.name == "prodigy", f'with optim.name = "{optim.name}"', "optim.name"
    yield ("optim.ema_offload",), optim.ema > 0, "without optim.ema", "optim.ema"
    yield ("train.steps",), recipe.train.epochs is None, "with train.epochs", "train.epochs"
    yield (
        ("prior.pictures", "prior.path", "prior.sampling_steps", "prior.guidance"),
        prior.kind == "pictures",
        f'with prior.kind = "{prior.kind}"',
        "prior.kind",
    )
    yield ("prior.captions",), prior.kind == "teacher", f'with prior.kind = "{prior.kind}"', "prior.kind"


def _decay(recipe: Recipe, parts: tuple[str, ...]) -> Iterator[Switch]:
    """Weight decay does nothing where each part that learns has its own, or none."""
    name = ("optim.weight_decay",)
    none = recipe.optim.weight_decay == 0.0  # which is what words have
    yield name, bool(parts) or none, "on words, whose length is never pulled to 0", "adapter.kind"
    own = recipe.optim.text_encoder_weight_decay is not None and "unet" not in parts
    reason = "where the text encoders alone learn, with optim.text_encoder_weight_decay"
    yield name, not (parts and own), reason, "model.train", "optim.text_encoder_weight_decay"
