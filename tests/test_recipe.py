"""Recipes: files, flags, messages, rules between keys, saving and loading back."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from gesso.errors import Exit, RecipeError
from gesso.recipe import Loaded, load, save
from gesso.recipe.__main__ import page
from gesso.recipe.files import lines, toml
from gesso.recipe.keys import keys, lookup
from gesso.schema import Recipe

ROOT = Path(__file__).parent.parent
PHOTOS = ["--data.path", "photos"]


def refused(tmp_path: Path, text: str | None, *flags: str) -> str:
    """The message for a recipe that must be refused, with the folder's name left out."""
    path = None
    if text is not None:
        path = tmp_path / "dog.toml"
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path, flags)
    assert caught.value.exit == Exit.RECIPE
    return str(caught.value).replace(f"{tmp_path.as_posix()}/", "").replace(f"{tmp_path}/", "")


def test_three_typos_at_once_with_lines_and_nearest_names(tmp_path: Path) -> None:
    text = '[model]\nbse = "tiny"\n\n[[data]]\npath = "photos"\n[train]\nstpes = 4\nbatch = 2\n\n[smaple]\nevery = 1\n'
    assert refused(tmp_path, text) == (
        "3 things in dog.toml with its flags cannot be carried out:\n"
        "  dog.toml:2: there is no key model.bse; did you mean model.base?\n"
        "  dog.toml:7: there is no key train.stpes; did you mean train.steps?\n"
        "  dog.toml:10: there is no table [smaple]; did you mean [sample]?\n"
        "  What to do: docs/recipe.md describes every key"
    )


def test_types_and_ranges_say_what_was_given_and_what_is_allowed(tmp_path: Path) -> None:
    text = """\
[[data]]
path = "photos"
[train]
batch = 0
steps = "many"
resolution = 500
flip = 1
caption_dropout = 1.5
[optim]
lr = nan
name = "adamx"
betas = [0.9]
[sample]
seeds = []
prompts = "a dog"
"""
    assert refused(tmp_path, text).split("\n")[1:-1] == [
        "  dog.toml:4: train.batch is 0, must be at least 1",
        '  dog.toml:5: train.steps is "many", must be a whole number, at least 1',
        "  dog.toml:6: train.resolution is 500, must be divisible by 8; the nearest are 496 and 504",
        "  dog.toml:7: train.flip is 1, must be true or false",
        "  dog.toml:8: train.caption_dropout is 1.5, must be from 0 to 1",
        "  dog.toml:10: optim.lr is NaN, must be a number, above 0",
        '  dog.toml:11: optim.name is "adamx", must be one of "adamw", "adam", "sgd", "adamw_8bit", "adafactor", '
        '"lion", "prodigy", "adamw_schedule_free", "muon"',
        "  dog.toml:12: optim.betas is [0.9], must be a list of 2, each a number, from 0 to 1",
        "  dog.toml:14: sample.seeds is [], must not be empty",
        '  dog.toml:15: sample.prompts is "a dog", must be a list, each text in quotes',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('out = "x"\nout = "y"\n', "dog.toml:2: this key or table is written twice"),
        ("[train]\nsteps = 1\n[train]\nbatch = 1\n", "dog.toml:3: this key or table is written twice"),
        ("[train]\nsteps = \n", "dog.toml:2: this is not TOML: invalid value, in  steps ="),
        ("out = runs/dog\n", "dog.toml:1: this is not TOML"),
        ("[data]\npath = 'x'\n", "dog.toml:1: write [[data]] with two brackets"),
        ("train = 5\n[[data]]\npath='x'\n", "dog.toml:1: train is 5, but is a table: write [train]"),
        ("[[train]]\nsteps = 5\n[[data]]\npath='x'\n", "write [train] with one bracket"),
        ("[out]\nx = 5\n[[data]]\npath='x'\n", "out is one value, not a table"),
        ("[[data]]\nprompt = 'x'\n", "data.0.path is missing: a folder of pictures"),
        ("[[data]]\npath = ''\n", 'dog.toml:2: data.0.path is "", must not be empty'),
        ("[validate_]\nevery = 1\n[[data]]\npath='x'\n", "there is no table [validate_]; did you mean [validate]?"),
        ("[[data]]\npath='x'\n[optim]\nsteps = 1\n", "did you mean train.steps or sample.steps?"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load(tmp_path / "none.toml", PHOTOS)
    (tmp_path / "old.toml").write_bytes(b'seed = 1\nout = "caf\xe9"\n')
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "old.toml", PHOTOS)
    assert caught.value.where == f"{tmp_path / 'old.toml'}:2"
    with pytest.raises(RecipeError, match="not a run"):
        load(tmp_path, PHOTOS)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_bytes(b'\xef\xbb\xbfseed = 3\r\n[[data]]\r\npath = "photos"\r\n')
    assert load(tmp_path / "w.toml").recipe.seed == 3


def test_flags_win_and_every_form_of_them_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dog.toml"
    path.write_text('seed = 1\n[train]\nsteps = 9\nflip = true\n[[data]]\npath = "a"\n[[data]]\npath = "b"\n')
    flags = "--train.steps 400 --train.micro-batch=2 --train.flip false --out runs/x --data.path c --data.1.repeats 3"
    more = ["--sample.prompts", "a dog", "--sample.prompts", "--sample.seeds=[4, 5]", "--optim.lr", "1"]
    with pytest.raises(RecipeError, match=r"--sample.prompts: needs a value, a list, each text in quotes"):
        load(path, [*flags.split(), *more])
    more[3:3] = ["a cat"]
    loaded = load(path, [*flags.split(), *more, "--torch.compile", "--optim.betas", "[0.8, 0.9]"])
    it = loaded.recipe
    assert (it.train.steps, it.train.micro_batch, it.train.flip, it.out, it.seed) == (400, 2, False, "runs/x", 1)
    assert [(table.path, table.repeats) for table in it.data] == [("c", 1), ("b", 3)]
    assert (it.sample.prompts, it.sample.seeds, it.optim.lr) == (("a dog", "a cat"), (4, 5), 1.0)
    assert (it.torch.compile, it.optim.betas) == (True, (0.8, 0.9))
    assert load(path, ["--out", "x", "--out=y"]).recipe.out == "y"
    of = loaded.origins
    assert (of["train.steps"], of["seed"], of["train.batch"], of["data.0.path"], of["data.1.path"]) == (
        "flag",
        "file",
        "default",
        "flag",
        "file",
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "4"], "--steps: there is no key steps; did you mean --train.steps or --sample.steps?"),
        (["--train.stpes=4"], "did you mean --train.steps?"),
        (["--train.steps", "4.5"], "--train.steps: train.steps is 4.5, must be a whole number, at least 1"),
        (["--train.steps", "many"], '--train.steps: is "many", must be a whole number'),
        (["--train.steps"], "--train.steps: needs a value, a whole number, at least 1"),
        (["--sample.seeds", "1", "--sample.seeds", "[2]"], "--sample.seeds: is given twice"),
        (["--train.flip=maybe"], '--train.flip: is "maybe", must be true or false'),
        (["--sample.seeds", "[1,"], "--sample.seeds: is [1,, must be a list"),
        (["--data.3.path", "x"], "--data.3.path: there is no data.1 yet"),
        (["photos"], "photos is not a flag"),
    ],
)
def test_what_is_wrong_with_flags(tmp_path: Path, flags: list[str], said: str) -> None:
    assert said in refused(tmp_path, None, *PHOTOS, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--train.batch 6 --train.micro-batch 4", "must divide train.batch, which is 6; the nearest are 3 and 6"),
        ("--train.batch 4 --train.micro-batch 5", "must divide train.batch, which is 4; at most 4"),
        ("--prior.path x", "--prior.path: prior.path has no effect without prior.prompt"),
        ("--validate.path x --validate.holdout 0.5", "validate.path and validate.holdout are both given"),
        ("--validate.every 5", "validate.every has no effect without validate.path or validate.holdout"),
        ("--objective.gamma 5", 'objective.gamma has no effect with objective.weighting = "uniform"'),
        ("--objective.gamma 5 --objective.weighting debiased", "objective.gamma has no effect"),
        ("--objective.times-begin 5", 'objective.times_begin has no effect with objective.times = "uniform"'),
        ("--objective.times later", "has no effect while objective.times_multiplier is 1"),
        (
            "--objective.times range --objective.times-multiplier 2 --objective.times-begin 9 --objective.times-end 9",
            "objective.times_begin is 9, but must be below times_end, which is 9",
        ),
        ("--objective.prediction epsilon --objective.zero-snr", "cannot be predicted at zero terminal SNR"),
        ("--optim.cycles 3", 'optim.cycles has no effect with optim.schedule = "constant"'),
        ("--optim.power 2 --optim.schedule cosine", 'optim.power has no effect with optim.schedule = "cosine"'),
        ("--optim.warmup 9 --train.steps 9", "optim.warmup is 9, but must be below train.steps, which is 9"),
        ("--sample.every 5", "sample.every has no effect without sample.prompts"),
        ("--sample.prompts a --sample.seeds [1,1]", "sample.seeds has the same item twice"),
        ("--model.revision main", "model.revision is for Hub ids"),
        ("--out photos/run", "lies in the pictures' folder photos"),
        ("--out photos", "lies in the pictures' folder photos"),
        ("--prior.prompt x --prior.path faces --out faces/run", "lies in the pictures' folder faces"),
        ("--validate.path held --out held", "lies in the pictures' folder held"),
        ("--data.path ~/photos --out {home}/photos/run", "lies in the pictures' folder ~/photos"),
        ("--out ~/run", "--out: out = ~/run: only a shell expands ~, and only outside quotes; write {home}/run"),
        ("--cache.path ~/c", "cache.path = ~/c: only a shell expands ~"),
        ("--adapter.kind none --adapter.rank 4", 'adapter.rank has no effect with adapter.kind = "none"'),
        ("--adapter.kind none --adapter.alpha 4", "adapter.alpha has no effect"),
        ("--adapter.kind none --adapter.dropout 0.1", "adapter.dropout has no effect"),
        ('--adapter.kind none --adapter.targets ["to_q"]', "adapter.targets has no effect"),
        (
            '--adapter.kind ti --tokens.name <x> --model.train ["unet"]',
            'model.train has no effect with adapter.kind = "ti"',
        ),
        ("--adapter.kind ti --tokens.name <x> --adapter.rank 4", 'adapter.rank has no effect with adapter.kind = "ti"'),
        ("--adapter.kind ti", "learns new words, and there are none"),
        ("--adapter.kind none --tokens.name <x>", "are learned alone"),
        ("--tokens.name <x> --tokens.1.name <x>", '[[tokens]] has the word "<x>" twice'),
        ("--tokens.1.name <x>", "there is no tokens.0 yet"),
        ("--adapter.pivot 0.5", "adapter.pivot has no effect without both [[tokens]] and an adapter"),
        ("--adapter.factor 4", 'adapter.factor has no effect with adapter.kind = "lora"'),
        ("--adapter.kind oft --adapter.alpha 4", 'adapter.alpha has no effect with adapter.kind = "oft"'),
        ("--adapter.text-targets q_proj", "adapter.text_targets has no effect without a text encoder in model.train"),
        ("--rules.match to_q", 'the rule for "to_q" changes nothing'),
        ("--rules.match to_q --rules.rank 4 --rules.skip", "skips its layers and yet gives them rank"),
        ("--adapter.kind none --rules.match to_q --rules.rank 4", "[[rules]] are for adapters"),
        ("--optim.text-encoder-lr 1e-5", "optim.text_encoder_lr has no effect without a text encoder in model.train"),
        ("--optim.token-lr 1e-3", "optim.token_lr has no effect without [[tokens]]"),
        ("--optim.name prodigy", "set optim.lr = 1"),
        ("--optim.safeguard-warmup false", "optim.safeguard_warmup has no effect"),
        ("--optim.name adamw_schedule_free --optim.ema 0.9", "both average the weights"),
        ("--optim.name adamw_schedule_free --optim.schedule cosine", "stands in for a schedule"),
        ("--optim.ema-offload", "optim.ema_offload has no effect without optim.ema"),
        ("--train.epochs 2 --train.steps 5", "train.steps has no effect with train.epochs"),
        ("--save.every 3 --save.every-epochs 2", "save.every and save.every_epochs are both given"),
        ("--prior.prompt x --prior.kind teacher --prior.pictures 9", "prior.pictures has no effect"),
        ("--prior.prompt x --prior.captions c.txt", "prior.captions has no effect"),
        ("--engine reference --objective.loss huber", "does not have objective.loss"),
        ("--engine reference --train.gradient-checkpointing", "train.gradient_checkpointing has no effect with engine"),
        ("--engine reference --train.precision bf16", 'train.precision has no effect with engine = "reference"'),
        ("--engine reference --train.device cuda:1", 'train.device has no effect with engine = "reference"'),
        ("--train.crop random --cache.latents true", 'cache.latents has no effect with train.crop = "random"'),
        ("--optim.name sgd --optim.betas [0.9,0.99]", "optim.betas has no effect in its second number"),
        ("--adapter.dropout 0.1 --train.micro-batch 2", "the run would depend on how a batch is split"),
        (
            "--rules.match to_q --rules.dropout 0.1 --train.micro-batch 2",
            "rules.0.dropout is 0.1 and train.micro_batch",
        ),
        ('--model.train ["unet","unet"]', "model.train names unet twice"),
        ('--model.train ["Unet"]', "must be a list, each one of"),
        ("--adapter.kind lokr --adapter.factor 0", "adapter.factor is 0, but must be above 0"),
        (
            "--adapter.kind ti --tokens.name <x> --optim.weight-decay 0.5",
            "optim.weight_decay has no effect on words",
        ),
        (
            '--model.train ["text_encoder"] --optim.weight-decay 0.5 --optim.text-encoder-weight-decay 0.1',
            "optim.weight_decay has no effect where the text encoders alone learn",
        ),
        ("--cache.path x --cache.latents false --cache.text false", "cache.path has no effect"),
        ("--engine reference --torch.compile", 'torch.compile has no effect with engine = "reference"'),
        ("--mindspore.compile", 'mindspore.compile has no effect with engine = "torch"'),
    ],
)
def test_rules_between_keys(tmp_path: Path, flags: str, said: str) -> None:
    home = Path.home().as_posix()
    message = refused(tmp_path, None, *PHOTOS, *flags.replace("{home}", home).split())
    assert said.replace("{home}", home) in message
    assert "things in" not in message, "one mistake is one sentence"


def test_no_pictures_is_said(tmp_path: Path) -> None:
    assert "there are no pictures" in refused(tmp_path, "seed = 1\n")


def test_a_flag_may_switch_off_what_the_file_describes(tmp_path: Path) -> None:
    path = tmp_path / "dog.toml"
    path.write_text(
        '[[data]]\npath="photos"\n[sample]\nprompts=["a"]\nevery=5\n[optim]\nschedule="polynomial"\npower=2.0'
    )
    loaded = load(path, ["--sample.prompts", "[]", "--optim.schedule", "constant", "--adapter.kind", "none"])
    assert loaded.recipe.sample.prompts == ()
    path.write_text('[[data]]\npath="photos"\n[sample]\nprompts=[]\nevery=5\n')
    with pytest.raises(RecipeError, match=r"sample\.every has no effect"):
        load(path)


@pytest.mark.parametrize(
    "flags",
    [
        "--adapter.kind none",
        '--adapter.kind none --model.train ["text_encoder"]',
        "--engine reference --train.precision fp32 --train.device cpu",
        "--train.crop random",
        "--train.crop random --cache.latents false",
        "--optim.name sgd --optim.betas [0.5,0.999]",
        "--adapter.dropout 0.1 --train.batch 4 --train.micro-batch 4",
        "--adapter.dropout 0.1",
        "--out ../photos-run",
        "--data.path ~/photos --out ./run",
    ],
)
def test_what_has_its_effect_is_taken(flags: str) -> None:
    load(None, [*PHOTOS[: 0 if "--data" in flags else 2], *flags.split()])


def test_a_flag_may_switch_off_what_the_file_says_of_adapter_crop_and_engine(tmp_path: Path) -> None:
    path = tmp_path / "dog.toml"
    path.write_text(
        '[[data]]\npath="photos"\n[adapter]\nkind="lora"\nrank=4\ndropout=0.1\n'
        '[train]\nmicro_batch=2\nprecision="bf16"\n[cache]\nlatents=true\n'
    )
    with pytest.raises(RecipeError, match="how a batch is split"):
        load(path)
    flags = ["--adapter.kind", "none", "--train.crop", "random", "--engine", "reference"]
    assert load(path, flags).recipe.adapter.rank == 4
    path.write_text('[[data]]\npath="photos"\n[adapter]\nkind="none"\n[model]\ntrain=["unet"]\n')
    assert load(path, ["--adapter.kind", "lora"]).recipe.model.train == ("unet",)


def test_a_misspelt_switch_is_not_told_twice(tmp_path: Path) -> None:
    message = refused(tmp_path, '[[data]]\npath = "x"\n[sample]\npromts = ["a"]\nevery = 5\n')
    assert message.startswith("dog.toml:4: there is no key sample.promts; did you mean sample.prompts?")


RICH = """\
out = "runs/dög"
[model]
base = "tiny"
[[data]]
path = 'pho"tos\\x'
prompt = "first line\\nsecond\\u007f"
[[data]]
path = "more"
weight = 0.5
[[rules]]
match = "unet.mid_block.*"
rank = 4
[[tokens]]
name = "<dög>"
[objective]
weighting = "min_snr"
[optim]
lr = 1e-5
betas = [0.5, 0.99]
[sample]
prompts = ["a", "b # no comment"]
[validate]
holdout = 0.1
"""


def test_saved_recipes_load_back_equal(tmp_path: Path) -> None:
    (tmp_path / "dog.toml").write_text(RICH, encoding="utf-8")
    loaded = load(tmp_path / "dog.toml", ["--train.steps", "7", "--validate.every", "2"], {"save": {"every": 3}})
    save(loaded, tmp_path / "run")
    again = load(tmp_path / "run" / "recipe.toml")
    assert again.recipe == loaded.recipe
    text = (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")
    assert "steps = 7  # flag --train.steps\n" in text
    assert "every = 3\n" in text
    assert "batch" not in text

    effective = json.loads((tmp_path / "run" / "effective.json").read_text(encoding="utf-8"))
    assert {lookup(name).name for name in effective} == set(keys())  # type: ignore[union-attr]
    assert effective["train.steps"] == {"value": 7, "origin": "flag"}
    assert effective["optim.lr"] == {"value": 1e-5, "origin": "file"}
    assert effective["train.resolution"] == {"value": None, "origin": "default"}
    assert effective["save.every"] == {"value": 3, "origin": "default"}
    assert list((tmp_path / "run").glob(".*")) == []


def test_a_run_folder_is_a_recipe_and_may_have_moved(tmp_path: Path) -> None:
    save(load(None, [*PHOTOS, "--out", "elsewhere", "--train.steps", "5"]), tmp_path / "run")
    loaded = load(tmp_path / "run", ["--train.steps", "6"])
    assert (loaded.recipe.out, loaded.recipe.train.steps) == ((tmp_path / "run").as_posix(), 6)
    assert loaded.path == tmp_path / "run" / "recipe.toml"


def test_file_tables_replace_the_default_tables(tmp_path: Path) -> None:
    path = tmp_path / "dog.toml"
    path.write_text('[[data]]\npath = "mine"\n')
    defaults = {"data": [{"path": "a"}, {"path": "b"}], "train": {"steps": 5}}
    assert [table.path for table in load(path, [], defaults).recipe.data] == ["mine"]
    assert [table.path for table in load(None, [], defaults).recipe.data] == ["a", "b"]
    with pytest.raises(RecipeError, match="stpes"):
        load(path, [], {"train": {"stpes": 5}})


def test_lines_survive_strings_lists_and_inline_tables() -> None:
    text = '# c\nout = """\n[train]\nx = 1\n"""\n\n[sample]\nprompts = [\n "a",\n]\nevery = 1\n'
    text += '[[data]]\npath="a"\n[[data]]\npath="b"\n'
    found = lines(text + 'optim.lr = 1\n[model]\n"base" = "x" # end\n[cache]\n')
    assert {name: found[name] for name in ("out", "sample.prompts", "sample.every", "data.1.path")} == {
        "out": 2,
        "sample.prompts": 8,
        "sample.every": 11,
        "data.1.path": 15,
    }
    assert (found["model.base"], found["cache"], found["data"]) == (18, 19, 12)
    assert lines('data = [{path = "a"},\n {path = "b"}]\n')["data.1.path"] == 1


@cases(st.recursive(st.text() | st.booleans() | st.integers() | st.floats(allow_nan=False), st.lists, max_leaves=5))
def test_any_value_is_written_as_toml_that_reads_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_every_default_passes_its_own_rules() -> None:
    loaded: Loaded = load(None, PHOTOS)
    assert loaded.recipe == Recipe.model_validate({"data": [{"path": "photos"}]})
    assert set(loaded.origins.values()) == {"default", "flag"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_say_how_to_use_them(path: Path) -> None:
    assert load(path).recipe.out.startswith("runs/")
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(word in head for word in (f"gesso train recipes/{path.name}", "Expects:", "Needs:", "Gives:"))


def test_the_page_about_the_recipe_is_current() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == page(), (
        "python -m gesso.recipe > docs/recipe.md"
    )
    assert all(key.description and f"`{key.name.rpartition('.')[2]}`" in page() for key in keys().values())


def test_a_run_goes_on_by_its_folder_with_what_its_flags_switched_off(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('out = "r"\n[adapter]\nrank = 4\n[[data]]\npath = "photos"\n[sample]\nprompts = ["a"]\nevery = 5\n')
    first = load(file, ["--sample.prompts", "[]", "--adapter.kind", "none", "--out", str(tmp_path / "run")])
    (tmp_path / "run").mkdir()
    save(first, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.recipe == first.recipe
    save(again, tmp_path / "run")
    assert load(tmp_path / "run").recipe == first.recipe


def test_a_colour_that_is_none_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(RecipeError, match=r'background is "pink", must be text: "white", "black", "#rrggbb"'):
        load(None, ["--data.path", "photos", "--data.background", "pink"])
