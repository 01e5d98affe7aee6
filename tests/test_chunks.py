"""Captions longer than a text encoder reads at once: chunks, and rows of unlike length side by side."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import events, gesso, pictures, recipe
from sdxl_plain import pipe
from torch_plain import CAPTIONS, gradients, rates
from torch_runs import pixels
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gesso.chunks import cut, level
from gesso.data.batch import Batch
from gesso.engines.engine import Optim
from gesso.errors import RecipeError
from gesso.families import find
from gesso.generate import Request, generate
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective
from gesso.schema import TorchEngine

LONG = "a cat on a red background beside an apple " * 6
ROOM = 30
"""Tokens of a chunk of the blank models, whose text encoders read 32 with their marks."""
TIMES = np.array([10, 300, 600, 990])


def create(base: Path, kind: str, *, chunks: int, parts: tuple[str, ...] = ()) -> Any:
    engine = import_module("gesso.engines.torch.engine").create(TorchEngine(), device="cpu", precision="fp32")
    engine.load(base, find(kind), parts=parts, chunks=chunks)
    return engine


def chunked(text: str, folder: Path, tokenizer: str, encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Every layer's output for the chunks of `text`, end to end, and the first chunk's pooled vector."""
    reader = CLIPTokenizer.from_pretrained(folder / tokenizer)
    ids = reader(text, add_special_tokens=False).input_ids
    parts = [ids[at : at + ROOM] for at in range(0, len(ids), ROOM)]
    rows = [[reader.bos_token_id, *part, reader.eos_token_id] for part in parts]
    rows = [row + [reader.pad_token_id] * (ROOM + 2 - len(row)) for row in rows]
    with torch.no_grad():
        out = encoder(torch.tensor(rows), output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    return torch.cat([*out.hidden_states[-2]])[None], pooled[:1]


def test_ids_are_cut_into_chunks() -> None:
    assert cut([], 3) == [[]]
    assert cut([1, 2, 3], 3) == [[1, 2, 3]]
    assert cut(range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut(range(7), 3, most=2) == [[0, 1, 2], [3, 4, 5]]


def test_rows_of_unlike_length_are_repeated_until_they_agree() -> None:
    one, two, three = (np.arange(n, dtype=np.int64) for n in (1, 2, 3))
    assert level([two, three]).tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert level([one, two, three]).shape == (3, 6)
    assert level([two, two]).shape == (2, 2)
    assert level([np.float32(1.0), np.float32(2.0)]).shape == (2,)


def test_a_long_caption_is_encoded_chunk_by_chunk(blank: Path) -> None:
    engine = create(blank, "StableDiffusionPipeline", chunks=9)
    encoder = CLIPTextModel.from_pretrained(blank / "text_encoder").eval()
    reader = CLIPTokenizer.from_pretrained(blank / "tokenizer")
    ids = reader(LONG, add_special_tokens=False).input_ids
    assert 2 * ROOM < len(ids) <= 3 * ROOM
    with torch.no_grad():
        alone = [
            encoder(torch.tensor([[reader.bos_token_id, *part, reader.eos_token_id] + [reader.pad_token_id] * fill]))
            for part in (ids[:ROOM], ids[ROOM : 2 * ROOM], ids[2 * ROOM :])
            for fill in (ROOM - len(part),)
        ]
    wanted = torch.cat([each.last_hidden_state for each in alone], dim=1).numpy()
    assert engine.encode_text([LONG])["encoder_hidden_states"] == pytest.approx(wanted, abs=1e-6)
    assert engine.token_counts([LONG, "a cat"]) == ([len(ids) + 2, 4], 9 * ROOM + 2)


def test_short_captions_are_encoded_as_without_chunks(blank: Path, blank_xl: Path) -> None:
    for base, kind in ((blank, "StableDiffusionPipeline"), (blank_xl, "StableDiffusionXLPipeline")):
        one, many = (create(base, kind, chunks=chunks) for chunks in (1, 4))
        for caption in CAPTIONS:
            first, second = one.encode_text([caption]), many.encode_text([caption])
            assert first.keys() == second.keys()
            assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_is_over_is_cut_off(blank: Path) -> None:
    two, nine = (create(blank, "StableDiffusionPipeline", chunks=chunks) for chunks in (2, 9))
    short, whole = (each.encode_text([LONG])["encoder_hidden_states"] for each in (two, nine))
    assert short.shape[1] == 2 * (ROOM + 2)
    assert short == pytest.approx(whole[:, : 2 * (ROOM + 2)], abs=1e-6)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_caption_means_the_same_whatever_stands_beside_it(blank: Path, blank_xl: Path, kind: str, live: bool) -> None:
    """Errors and gradients of captions of 1, 1, 2 and 3 chunks together are those of each alone."""
    base = blank if kind == "StableDiffusionPipeline" else blank_xl
    captions = ["a cat", "", LONG[:150], LONG]
    parts = ("unet", "text_encoder") if live else ("unet",)
    together, apart = (create(base, kind, chunks=3, parts=parts) for _ in range(2))
    for engine in (together, apart):
        engine.attach(None, Optim(clip=0.0))
    lengths = {len(each) for each in (together.tokens([caption])["text_encoder"][0] for caption in captions)}
    assert lengths == {ROOM + 2, 2 * (ROOM + 2), 3 * (ROOM + 2)}
    whole = _batch(together, captions, live)
    one = [_batch(apart, [caption], live, at) for at, caption in enumerate(captions)]
    errors = np.concatenate([apart.evaluate(*each) for each in one])
    assert together.evaluate(*whole) == pytest.approx(errors, rel=2e-5)
    together.step([whole], lr=rates(1e-5), ema_decay=0.0, key=0).read()
    apart.step(one, lr=rates(1e-5), ema_decay=0.0, key=0).read()
    found, wanted = gradients(together), gradients(apart)
    scale = max(float(np.abs(value).max()) for value in wanted.values())
    assert scale > 1e-4
    assert max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted) < 1e-5 * scale


def _batch(engine: Any, captions: list[str], live: bool, first: int = 0) -> tuple[Batch, Coefficients]:
    rows = slice(first, first + len(captions))
    x0, eps = np.random.default_rng(3).standard_normal((2, 4, 4, 16, 16)).astype(np.float32)[:, rows]
    sizes = np.array([[64, 64, 0, 0, 64, 64]] * len(captions), dtype=np.float32)
    cond = engine.tokens(captions) if live else engine.encode_text(captions) if len(captions) == 1 else None
    if cond is None:
        each = [engine.encode_text([caption]) for caption in captions]
        cond = {name: level([one[name][0] for one in each]) for name in each[0]}
    batch = Batch(
        x0=x0,
        eps_in=eps,
        eps_target=eps,
        cond={**cond, "time_ids": sizes} if engine.family.name == "sdxl" else cond,
        weight=np.full(len(captions), 0.25, dtype=np.float32),
        ids=np.arange(len(captions)),
    )
    return batch, Objective().at(TIMES[rows])


@pytest.mark.parametrize("negative", ["", "blurry", LONG[:150]])
def test_a_long_prompt_draws_what_diffusers_draws_from_its_chunks(tmp_path: Path, blank: Path, negative: str) -> None:
    from diffusers import StableDiffusionPipeline

    made = _drawn(blank, tmp_path, LONG, negative)
    plain = StableDiffusionPipeline.from_pretrained(blank, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    engine = create(blank, "StableDiffusionPipeline", chunks=9)
    each = [engine.encode_text([text])["encoder_hidden_states"][0] for text in (LONG, negative)]
    embeds = torch.from_numpy(level(each))
    picture = plain(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    assert np.array_equal(pixels(made), np.asarray(picture))
    assert not np.array_equal(pixels(made), pixels(_drawn(blank, tmp_path, LONG[:150], negative)))


def test_the_end_of_a_long_prompt_counts_with_two_encoders(tmp_path: Path, blank_xl: Path) -> None:
    made = _drawn(blank_xl, tmp_path, LONG, "")
    first, _ = chunked(LONG, blank_xl, "tokenizer", CLIPTextModel.from_pretrained(blank_xl / "text_encoder").eval())
    second, pooled = chunked(
        LONG,
        blank_xl,
        "tokenizer_2",
        CLIPTextModelWithProjection.from_pretrained(blank_xl / "text_encoder_2").eval(),
    )
    hidden = torch.cat([first.reshape(1, -1, first.shape[-1]), second.reshape(1, -1, second.shape[-1])], dim=-1)
    picture = pipe(blank_xl)(
        prompt_embeds=hidden,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(hidden),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    # Two chunks in one call of the text encoder, or each alone: rounding may differ by a grey level.
    assert np.abs(pixels(made).astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_a_refiner_reads_long_prompts_too(tmp_path: Path, blank_xl: Path) -> None:
    from gesso.engines.torch.demo.blank_xl import write

    write(tmp_path / "refiner", refiner=True, seed=5)
    options = {"refiner": str(tmp_path / "refiner"), "handover": 0.5}
    long = pixels(_drawn(blank_xl, tmp_path / "a", LONG, "", **options))
    cut_short = pixels(_drawn(blank_xl, tmp_path / "b", LONG[:150], "", **options))
    assert not np.array_equal(long, cut_short)


def test_a_run_learns_all_chunks_of_a_caption(tmp_path: Path, blank: Path) -> None:
    folder = pictures(tmp_path / "pictures", 3)
    (folder / "0.txt").write_text(LONG)
    losses = {}
    for chunks in (1, 3):
        tables = {
            "engine": "torch",
            "train": {"steps": 2, "batch": 3, "caption_chunks": chunks},
            "out": str(tmp_path / f"run-{chunks}"),
        }
        ended = gesso("train", recipe(tmp_path, blank, **tables))
        assert ended.returncode == 0, ended.stderr
        losses[chunks] = [each["loss"] for each in events(tmp_path / f"run-{chunks}", "stepped")]
        said = " ".join(each["message"] for each in events(tmp_path / f"run-{chunks}", "warned"))
        assert ("the end is cut off" in said) == (chunks == 1), said
    assert losses[1] != losses[3]


def test_the_reference_engine_refuses_chunks(linear: Path) -> None:
    module = import_module("gesso.engines.reference.engine")
    with pytest.raises(RecipeError, match="caption_chunks"):
        module.create(TorchEngine(), device="cpu", precision="fp32").load(
            linear, find("StableDiffusionPipeline"), chunks=2
        )


def _drawn(base: Path, out: Path, prompt: str, negative: str, **options: Any) -> Path:
    request = Request(
        model=str(base), prompts=(prompt,), out=out, seeds=(3,), steps=4, guidance=4.0, negative=negative, **options
    )
    return generate(request)[0]
