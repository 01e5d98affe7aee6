"""What may change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gesso import resume
from gesso.checkpoint import compatible
from gesso.schema import Recipe

BASE = {**resume.flatten(Recipe.model_validate({}).as_toml()), "data": "f1", "precision": "fp32", "base.unet": "h1"}


@pytest.mark.parametrize(
    ("key", "value", "decision"),
    [
        ("train.steps", 2000, "allowed"),
        ("save.every", 7, "allowed"),
        ("sample.prompts", ["a dog"], "allowed"),
        ("validate.every", 9, "allowed"),
        ("track.console", "none", "allowed"),
        ("cache.latents", False, "allowed"),
        ("out", "elsewhere", "allowed"),
        ("train.micro_batch", 2, "allowed"),
        ("train.device", "cpu", "allowed"),
        ("torch.threads", 4, "allowed"),
        ("data.0.path", "moved", "allowed"),
        ("optim.lr", 2e-4, "warned"),
        ("optim.schedule", "cosine", "warned"),
        ("optim.warmup", 5, "warned"),
        ("objective.weighting", "min_snr", "warned"),
        ("seed", 1, "refused"),
        ("train.batch", 8, "refused"),
        ("train.resolution", 64, "refused"),
        ("train.crop", "random", "refused"),
        ("train.flip", True, "refused"),
        ("train.caption_dropout", 0.1, "refused"),
        ("data", "f2", "refused"),
        ("data.0.prompt", "a cat", "refused"),
        ("prior.weight", 0.5, "refused"),
        ("precision", "bf16", "refused"),
        ("adapter.rank", 4, "impossible"),
        ("adapter.alpha", 4.0, "impossible"),
        ("optim.name", "sgd", "impossible"),
        ("optim.ema", 0.99, "impossible"),
        ("engine", "reference", "impossible"),
        ("model.train", ["text_encoder"], "impossible"),
        ("something.new", 1, "impossible"),
    ],
)
def test_what_may_change_on_resume(key: str, value: object, decision: str) -> None:
    new = {**BASE, key: value}
    warnings, refusals = compatible(BASE, new)
    assert (len(warnings), len(refusals)) == {"allowed": (0, 0), "warned": (1, 0)}.get(decision, (0, 1))
    if decision != "allowed":
        text = (warnings or refusals)[0]
        assert text.startswith(f"{key} was ")
    if decision != "allowed" and key != "data":  # a hash would tell nobody anything
        assert json.dumps(value) in text
        assert json.dumps(BASE[key]) in text if key in BASE else "not set" in text
    if refusals:
        assert "start a new run with --out" in refusals[0]


def test_the_real_engines_read_one_another_and_the_reference_reads_neither() -> None:
    for old, new in (("torch", "mindspore"), ("mindspore", "torch")):
        (warning,), refusals = compatible({**BASE, "engine": old}, {**BASE, "engine": new})
        assert refusals == []
        assert warning.startswith(f'engine was "{old}" and is now "{new}": the last digits')
        assert compatible({**BASE, "engine": old}, {**BASE, "engine": old}) == ([], [])
        assert len(compatible({**BASE, "engine": "reference"}, {**BASE, "engine": new})[1]) == 1


def test_another_base_is_named_by_its_part_and_its_name_not_by_hashes() -> None:
    old = {**BASE, "base.unet": "a" * 64, "model.base": "tiny"}
    warnings, (refusal,) = compatible(old, {**old, "base.unet": "b" * 64, "model.base": "other"})
    assert warnings == []
    assert refusal == (
        'the base model\'s unet is not the one that this run began with (model.base was "tiny" and is now "other"): '
        "the checkpoint belongs to other weights; set model.base to the model that it began with, or start a new run "
        "with --out"
    )
    _, (refusal,) = compatible(old, {**old, "base.unet": "b" * 64})
    assert 'model.base is "tiny" as before, but its files have changed' in refusal


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"])
def test_more_steps_are_another_schedule_unless_it_is_constant(schedule: str) -> None:
    old = {**BASE, "optim.schedule": schedule}
    warnings, refusals = compatible(old, {**old, "train.steps": 2000})
    expected = "train.steps was 1000 and is now 2000: the learning rate follows a schedule of another length from here"
    assert (warnings, refusals) == ([] if schedule.startswith("constant") else [expected], [])
    # Where the schedule itself is another one, that alone is worth a word.
    other = {**old, "optim.schedule": "constant", "train.steps": 2000}
    assert len(compatible(old, other)[0]) == (schedule != "constant")


def test_the_same_recipe_resumes_whether_it_came_from_json_or_not() -> None:
    recipe = {"optim": {"betas": (0.9, 0.999)}, "data": [{"path": "a", "repeats": 1}, {"path": "b"}], "seed": 3}
    assert compatible(json.loads(json.dumps(recipe)), recipe) == ([], [])
    assert compatible(BASE, BASE) == ([], [])
    changed = {**recipe, "data": [{"path": "c", "repeats": 2}, {"path": "b"}]}
    _, refusals = compatible(recipe, changed)
    assert [line.split(" was ")[0] for line in refusals] == ["data.0.repeats"]


def test_a_key_that_is_new_since_the_checkpoint_counts_as_its_default() -> None:
    old = {"data": [{"path": "a", "repeats": 2}], "optim": {"lr": 1e-4}}
    new = {"data": [{"path": "a", "repeats": 2, "masks": False}], "optim": {"lr": 1e-4, "ema": 0.0}}
    assert compatible(old, new) == ([], [])
    _, refusals = compatible(old, {**new, "data": [{"path": "a", "repeats": 2, "masks": True}]})
    assert [line.split(" was ")[0] for line in refusals] == ["data.0.masks"]


def test_every_recipe_key_has_a_row_and_every_row_is_used() -> None:
    keys = [*BASE, "adapter.alpha", "objective.zero_snr", "train.resolution", "model.base", "data.0.path"]
    keys += [
        "data.0.encoding",
        "data.0.revision",
        "data.0.config",
        "data.0.prompt",
        resume.LENGTH,
        "train.epochs",
        "optim.text_encoder_lr",
    ]
    keys += [
        "mindspore.compile",
        "optim.token_lr",
        "optim.beta3",
        "rules.0.match",
        "tokens.0.name",
        resume.BETAS,
        resume.ENGINES,
    ]
    assert [key for key in keys if resume.decide(key) not in resume.TABLE] == []
    used = {resume.decide(key).pattern for key in keys}
    assert {rule.pattern for rule in resume.TABLE} - used == set()


def test_the_documentation_shows_the_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "resume.md"
    assert resume.as_markdown() in page.read_text(encoding="utf-8")


def test_other_pictures_are_refused_with_where_those_of_the_run_are_listed() -> None:
    _, (refusal,) = compatible({"data": "a" * 64}, {"data": "b" * 64})
    assert "the pictures or captions are others; data.lock.json in that folder lists those of the run" in refusal
    assert "aaaa" not in refusal
