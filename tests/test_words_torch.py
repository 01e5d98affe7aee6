"""New words on the PyTorch engine: only they move, they read as in diffusers, and draw as in diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch.nn import functional as F

from gesso.arrays import Array, Picture
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Optim, SampleRequest, Token
from gesso.errors import RecipeError
from gesso.families import find
from gesso.formats import embeddings, lora
from gesso.formats.metadata import Config
from gesso.models import resolve
from gesso.objective.coefficients import Coefficients
from gesso.schema import TorchEngine

# diffusers' Euler scheduler hands a tensor to numpy in a way that numpy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

DOG = Token(name="<dog>", init="red cat", vectors=2)
HAT = Token(name="<hat>", seed=3)
TOY = Token(name="<toy>", init="toy", vectors=3)
WORDS = (DOG, HAT, TOY)
CAPTIONS = ["a <dog> on a red background", "a <hat>, and a <toy>", "", "<toy><dog>s"]
PROMPT = "a <dog> with a <hat> beside <toy>"
LORA = Adapter(rank=2, alpha=3.0, targets={"unet": ("to_q", "to_v"), "text_encoder": ("q_proj", "v_proj")})
PLAIN = Optim(clip=0.0, weight_decay=0.0, text_weight_decay=0.0)
RATES = {"unet": 1e-3, "text_encoder": 1e-3, "text_encoder_2": 1e-3, "tokens": 1e-2}


@pytest.fixture(params=["sd", "xl"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("blank" if request.param == "sd" else "blank_xl")
    return found


def create(
    base: Path,
    tokens: Sequence[Token] = WORDS,
    *,
    adapter: Adapter | None = None,
    optim: Optim = PLAIN,
    parts: Sequence[str] = (),
    **options: Any,
) -> Any:
    module = import_module("gesso.engines.torch.engine")
    engine = module.create(TorchEngine(), **{"device": "cpu", "precision": "fp32", **options})
    engine.load(base, find(resolve(str(base)).pipeline), parts=parts)
    engine.attach(adapter, optim, tokens)
    return engine


def rows(engine: Any, captions: Sequence[str] = CAPTIONS, seed: int = 5) -> tuple[Batch, Coefficients]:
    """Latents and noise for the captions, plain epsilon prediction at four timesteps."""
    count = len(captions)
    x0, eps = np.random.default_rng(seed).standard_normal((2, count, 4, 16, 16)).astype(np.float32)
    cond: dict[str, Array] = dict(engine.tokens(captions))
    if engine.family.name == "sdxl":
        cond["time_ids"] = np.tile(np.array([64, 64, 0, 0, 64, 64], dtype=np.float32), (count, 1))
    alpha = np.linspace(0.9, 0.1, count)
    one, zero = np.ones(count), np.zeros(count)
    coefficients = Coefficients(
        a=np.sqrt(alpha), b=np.sqrt(1 - alpha), c_in=one, c_noise=np.linspace(10, 990, count), p=zero, q=one, w=one
    )
    weight = np.full(count, 1 / count, dtype=np.float32)
    batch = Batch(x0=x0, eps_in=eps, eps_target=eps, cond=cond, weight=weight, ids=np.arange(count))
    return batch, coefficients


def step(engine: Any, at: int = 0, rates: Mapping[str, float] = RATES) -> Any:
    return engine.step([rows(engine, seed=5 + at)], lr=rates, ema_decay=0.9, key=at).read()


def parameters(engine: Any) -> dict[str, Array]:
    """Every parameter of the networks that are in use, by component and name, bit for bit."""
    encoders = (encoder for encoder, _ in engine.family.encoders)
    return {
        f"{part}.{name}": value.detach().numpy().copy()
        for part in (engine.family.denoiser, *encoders)
        for name, value in engine.models.get(part).named_parameters()
    }


def write(engine: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    words = {name: value for name, value in engine.read()["weights"].items() if name.startswith("tokens.")}
    for name, writer in embeddings.writers(words).items():
        writer(folder / name)


def plain(base: Path, folder: Path, tokens: Sequence[Token] = WORDS) -> Any:
    """The base in plain diffusers, the words in `folder` loaded as the model card says."""
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    files = embeddings.files(folder)
    assert len(files) == len(tokens)
    if not hasattr(pipe, "text_encoder_2"):
        pipe.load_textual_inversion([str(file) for file in files])
        return pipe
    for token, file in zip(tokens, files, strict=True):
        word = load_file(file)
        pipe.load_textual_inversion(
            word["clip_l"], token=token.name, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
        )
        pipe.load_textual_inversion(
            word["clip_g"], token=token.name, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    return pipe


def drawn(pipe: Any) -> Picture:
    picture = pipe(
        PROMPT,
        negative_prompt="a <toy>",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    return np.asarray(picture)


REQUEST = SampleRequest(prompt=PROMPT, negative="a <toy>", seed=7, width=64, height=64, steps=3, guidance=4.0)


def test_only_the_words_move(base: Path) -> None:
    """AdamW with decay, six steps: every other number of the denoiser and the encoders keeps its bits."""
    engine = create(base, optim=Optim())
    encoders = [encoder for encoder, _ in engine.family.encoders]
    names = [f"tokens.{encoder}.{token.name}" for encoder in encoders for token in WORDS]
    before, start = parameters(engine), engine.read()["weights"]
    assert list(engine.trained) == list(start) == names
    assert all(value.dtype == np.float32 for value in start.values())
    losses = [step(engine).loss for _ in range(6)]
    after, end = parameters(engine), engine.read()["weights"]
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {f"{e}.{n}" for e in encoders for n in _rows_of(engine, e)}
    for name in names:
        assert np.abs(end[name] - start[name]).min() > 0, name
    assert losses[-1] < losses[0]


def _rows_of(engine: Any, encoder: str) -> list[str]:
    return [name for name, _ in engine.models.get(encoder).named_parameters() if ".token_embedding.new." in name]


def test_gradients_are_those_of_a_whole_table_with_more_rows(base: Path, tmp_path: Path) -> None:
    """As diffusers' textual inversion does it: resize, train the table, and look at the new rows."""
    engine = create(base)
    write(engine, tmp_path)
    batch, c = rows(engine)
    engine.step([(batch, c)], lr=RATES, ema_decay=0.0, key=0)
    found = engine.read()["optimizer"]
    pipe = plain(base, tmp_path)
    tables = {}
    for encoder, _ in engine.family.encoders:
        net = getattr(pipe, encoder)
        net.requires_grad_(False)
        tables[encoder] = net.get_input_embeddings().weight.requires_grad_(True)
    pipe.unet.requires_grad_(False)
    a, b = (torch.from_numpy(value.astype(np.float32)).view(-1, 1, 1, 1) for value in (c.a, c.b))
    x0, eps, times = (torch.from_numpy(value.astype(np.float32)) for value in (batch.x0, batch.eps_in, c.c_noise))
    ids = {name: torch.from_numpy(batch.cond[name]) for name, _ in engine.family.encoders}
    if "text_encoder_2" in ids:
        first = pipe.text_encoder(ids["text_encoder"], output_hidden_states=True)
        second = pipe.text_encoder_2(ids["text_encoder_2"], output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": torch.from_numpy(batch.cond["time_ids"])}
        answer = pipe.unet(a * x0 + b * eps, times, hidden, added_cond_kwargs=added).sample
    else:
        answer = pipe.unet(a * x0 + b * eps, times, pipe.text_encoder(ids["text_encoder"])[0]).sample
    F.mse_loss(answer, eps).backward()  # type: ignore[no-untyped-call]
    for encoder, table in tables.items():
        assert table.grad is not None
        wanted = table.grad[-sum(token.vectors for token in WORDS) :].numpy()
        own = np.concatenate([found[f"exp_avg/tokens.{encoder}.{token.name}"] / 0.1 for token in WORDS])
        assert np.abs(wanted).max() > 1e-5
        assert np.abs(own - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_prompts_are_read_as_diffusers_reads_them(base: Path, tmp_path: Path) -> None:
    engine = create(base)
    write(engine, tmp_path)
    pipe = plain(base, tmp_path)
    for encoder, name in engine.family.encoders:
        tokenizer = getattr(pipe, name)
        texts = [pipe.maybe_convert_prompt(caption, tokenizer) for caption in CAPTIONS]
        wanted = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
        np.testing.assert_array_equal(engine.tokens(CAPTIONS)[encoder], wanted.input_ids)
    assert engine.token_counts(["a cat", "", "<dog>", "<toy> <hat>"]) == ([4, 2, 4, 6], 32)


def test_samples_are_what_diffusers_draws_from_the_files(base: Path, tmp_path: Path) -> None:
    """The live vectors, after steps that moved them, pixel for pixel; and not what the words drew before."""
    engine = create(base)
    first = engine.sample([REQUEST])[0]
    for at in range(3):
        step(engine, at, {**RATES, "tokens": 0.3})
    found = engine.sample([REQUEST])[0]
    write(engine, tmp_path)
    np.testing.assert_array_equal(found, drawn(plain(base, tmp_path)))
    assert not np.array_equal(found, first)


def test_the_documented_line_loads_a_folder_with_one_word(blank: Path, tmp_path: Path) -> None:
    engine = create(blank, [DOG])
    write(engine, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(blank)
    pipe.load_textual_inversion(tmp_path)
    assert pipe.tokenizer.convert_tokens_to_ids(["<dog>", "<dog>_1"]) == [
        len(pipe.tokenizer) - 2,
        len(pipe.tokenizer) - 1,
    ]
    own = pipe.text_encoder.get_input_embeddings().weight[-2:].detach().numpy()
    np.testing.assert_array_equal(own, engine.read()["weights"]["tokens.text_encoder.<dog>"])


def test_words_and_a_lora_on_the_same_encoder(blank: Path, tmp_path: Path) -> None:
    """Pivotal tuning: both learn, the base does not, and diffusers draws the same with both files."""
    engine = create(blank, adapter=LORA)
    before = parameters(engine)
    step(engine, 0, {"unet": 0.0, "text_encoder": 0.0, "tokens": 1e-1})
    only_words = parameters(engine)
    moved = {name for name in before if not np.array_equal(before[name], only_words[name])}
    assert moved == {f"text_encoder.{name}" for name in _rows_of(engine, "text_encoder")}
    for at in range(1, 4):
        step(engine, at, {"unet": 1e-1, "text_encoder": 1e-1, "tokens": 1e-1})
    after = parameters(engine)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_" in name or ".token_embedding.new." in name}
    write(engine, tmp_path)
    adapters = {name: value for name, value in engine.read()["weights"].items() if not name.startswith("tokens.")}
    lora.write(tmp_path / lora.FILE, adapters, Config(rank=2, alpha=3.0))
    pipe = plain(blank, tmp_path)
    pipe.load_lora_weights(tmp_path)
    np.testing.assert_array_equal(engine.sample([REQUEST])[0], drawn(pipe))


def test_recomputed_activations_give_the_same_gradients(base: Path) -> None:
    found = {}
    for checkpointing in (False, True):
        engine = create(base, checkpointing=checkpointing)
        step(engine)
        found[checkpointing] = engine.read()["optimizer"]
        assert engine.models.get("text_encoder").is_gradient_checkpointing == checkpointing
    assert any(np.abs(value).max() > 1e-6 for value in found[True].values())
    for name, value in found[False].items():
        np.testing.assert_array_equal(found[True][name], value)


def test_bfloat16_trains_float32_words(base: Path) -> None:
    engine = create(base, precision="bf16")
    start = engine.read()["weights"]
    assert np.isfinite(step(engine).loss)
    for name, value in engine.read()["weights"].items():
        assert engine.trained[name].dtype == torch.float32
        assert np.isfinite(value).all()
        assert not np.array_equal(value, start[name])


def test_words_beside_a_text_encoder_that_learns_wholly(blank: Path) -> None:
    """The table's own rows and the words get each their own gradient."""
    engine = create(blank, [HAT], parts=["text_encoder"])
    before = parameters(engine)
    step(engine)
    after = parameters(engine)
    name = next(name for name in before if name.endswith("token_embedding.weight"))
    used = {int(each) for each in engine.tokens(CAPTIONS)["text_encoder"].ravel()} - {len(before[name])}
    changed = {int(at) for at in np.flatnonzero((before[name] != after[name]).any(axis=1))}
    assert changed == used
    assert sum(each.startswith("tokens.") for each in engine.trained) == 1
    assert not any(".new." in each for each in engine.trained)


def test_going_on_is_bit_identical(base: Path) -> None:
    """Two steps, written down, put into another engine, two more: as four straight."""
    straight = create(base, optim=Optim(ema=True))
    for at in range(4):
        step(straight, at)
    first, second = create(base, optim=Optim(ema=True)), create(base, optim=Optim(ema=True))
    for at in range(2):
        step(first, at)
    second.write(first.read())
    for at in range(2, 4):
        step(second, at)
    wanted, found = straight.read(), second.read()
    assert wanted.keys() == found.keys() == {"weights", "optimizer", "ema"}
    for kind in wanted:
        assert wanted[kind].keys() == found[kind].keys()
        for name, value in wanted[kind].items():
            np.testing.assert_array_equal(found[kind][name], value)


def test_an_encoder_that_pools_at_the_highest_id(blank: Path, tmp_path: Path) -> None:
    """eos_token_id 2, as SD 1.x and SDXL have it: what is pooled is then the new word, in training as in diffusers."""
    base = Path(shutil.copytree(blank, tmp_path / "base"))
    path = base / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    engine = create(base)
    write(engine, tmp_path / "words")
    pipe = plain(base, tmp_path / "words")
    ids = torch.from_numpy(engine.tokens(CAPTIONS)["text_encoder"])
    with torch.no_grad():
        own, theirs = engine.models.get("text_encoder").eval()(ids), pipe.text_encoder(ids)
    np.testing.assert_array_equal(own.pooler_output.numpy(), theirs.pooler_output.numpy())
    place = ids[0].argmax()
    assert ids[0, place] >= len(pipe.tokenizer) - sum(token.vectors for token in WORDS)
    np.testing.assert_array_equal(own.pooler_output[0].numpy(), own.last_hidden_state[0, place].numpy())


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (Token(name="cat"), 'already knows the word "cat"'),
        (Token(name="<|endoftext|>"), "already knows"),
        (Token(name="*"), "already knows"),
        (Token(name="<Dog>"), 'reads "<Dog>" as "<dog>"'),
        (Token(name="<dog>", init="  "), "no word"),
        (Token(name="<dog>", init="<|endoftext|>"), "no word"),
        (Token(name="a dog"), "white space"),
        (Token(name="<dog>", vectors=76), "76 vectors, but a caption has room for 30"),
    ],
)
def test_what_cannot_be_a_word_is_refused(base: Path, token: Token, says: str) -> None:
    with pytest.raises(RecipeError, match=says.replace("|", r"\|").replace("*", r"\*")):
        create(base, [token])


def test_words_begin_as_the_recipe_says(blank: Path) -> None:
    """Mean of several, one each where the count fits, and what the table of the encoder has."""
    tokens = [Token(name="<a>", init="cat apple"), Token(name="<b>", init="cat apple", vectors=2), HAT]
    engine = create(blank, tokens)
    table = engine.models.get("text_encoder").get_input_embeddings().weight.detach().numpy()
    ids = engine.models.get("tokenizer")("cat apple", add_special_tokens=False).input_ids
    found = engine.read()["weights"]
    np.testing.assert_array_equal(found["tokens.text_encoder.<b>"], table[ids])
    np.testing.assert_allclose(found["tokens.text_encoder.<a>"][0], table[ids].astype(np.float64).mean(0), rtol=1e-6)
    assert found["tokens.text_encoder.<hat>"].shape == (1, table.shape[1])
