"""A run folder as `gesso train` leaves it, drawn by arithmetic, for tests of what is made from one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from gesso import keys
from gesso.arrays import Picture
from gesso.events import Finished, Paused, Sample, Sampled, Saved, Started, Stepped, Validated, Warned
from gesso.formats import png
from gesso.trackers.jsonl import Jsonl

PROMPTS = ("a photo of sks kite on a blue background", "a photo of sks kite on a green background", "a red apple")
GROUNDS = ((66, 110, 190), (70, 150, 90), (120, 90, 160))
STEPS = (0, 5, 10, 15, 20)
NASTY = '<script>alert("1")</script> & "quotes"'


def kite(ground: tuple[int, int, int], learned: float, seed: int, side: int = 64) -> Picture:
    """A yellow lozenge with a red cross on a ground, that appears out of a grey blur as `learned` goes from 0 to 1."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    shift = keys.generator(seed, "kite").uniform(-0.06, 0.06, 2)
    x, y = x - shift[0], y - shift[1]
    lozenge = (np.abs(x) * 1.35 + np.abs(y) < 0.36)[..., None]
    cross = ((np.minimum(np.abs(x), np.abs(y)) < 0.025) & lozenge[..., 0])[..., None]
    disc = (np.hypot(x, y) < 0.26)[..., None]
    whole = np.where(cross, (190, 50, 40), np.where(lozenge, (245, 200, 60), ground))
    blur = np.where(disc, (150, 140, 150), np.array(ground))
    noise = keys.generator(seed, "grain").normal(0, 10 * (1.1 - learned), (side, side, 3))
    return np.clip(blur * (1 - learned) + whole * learned + noise, 0, 255).astype(np.uint8)


def make_run(folder: Path, *, finished: bool = True, steps: int = 20, side: int = 64) -> Path:
    """A run folder as `gesso train` leaves it, drawn by arithmetic."""
    photos = folder.parent / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    locked = []
    for number in range(5):
        Image.fromarray(kite(GROUNDS[number % 3], 1.0, 90 + number)).save(photos / f"{number}.png")
        captions = ["a photo of sks kite"] if number else ["a photo of sks kite", NASTY]
        sha256 = hashlib.sha256((photos / f"{number}.png").read_bytes()).hexdigest()
        locked.append({"file": f"{number}.png", "sha256": sha256, "captions": captions, "group": "instance"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.lock.json").write_text(json.dumps({"pictures": locked, "fingerprint": "0"}))
    values = {
        "engine": "torch",
        "out": f"runs/{folder.name}",
        "seed": 7,
        "model": {"base": "tiny"},
        "adapter": {"kind": "lora", "rank": 16},
        "data": [{"path": str(photos), "prompt": "a photo of sks kite"}],
        "prior": {"prompt": "a photo of a kite"},
        "train": {"steps": steps, "batch": 4, "resolution": 64, "precision": "fp32"},
        "optim": {"lr": 1e-3, "schedule": "cosine"},
    }
    origins = {"model.base": "kite.toml:2", "train.steps": "flag", "data.0.prompt": "kite.toml:9", "seed": "default"}
    (folder / "effective.json").write_text(json.dumps({"recipe": values, "origins": origins}))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu, 2 threads", "precision": "fp32"}))
    tracker = Jsonl(folder / "events.jsonl")
    what = "LoRA rank 16 of tiny, cpu, fp32"
    tracker.handle(
        Started(run=folder.name, steps=steps, batch=4, pictures=5, class_pictures=20, trainable=98304, what=what)
    )
    scale = steps // 20
    for step in range(steps + 1):
        if step:
            noise = float(keys.generator(1, "loss", step).normal(0, 0.022))
            loss = 0.11 + 0.1 * np.exp(-step / (5 * scale)) + noise
            tracker.handle(Stepped(step=step, loss=loss, lr=1e-3, grad_norm=0.5, seconds=0.3))
        if step % (5 * scale) == 0:
            held_out = 0.118 + 0.095 * np.exp(-step / (5.5 * scale))
            tracker.handle(Validated(step=step, loss=held_out, error=0.006, pictures=4))
            tracker.handle(Sampled(step=step, samples=samples(folder, step, step / steps, side), seconds=1.0))
    tracker.handle(Warned(step=3, message=f"the caption {NASTY} has 80 tokens; the encoder takes 77"))
    tracker.handle(Saved(step=steps, folder=f"checkpoint-{steps}", bytes=400_000, seconds=0.1))
    if finished:
        tracker.handle(Finished(step=steps, seconds=41.0, files=["pytorch_lora_weights.safetensors"]))
    else:
        tracker.handle(Paused(step=steps, reason="SIGTERM"))
    tracker.close()
    return folder


def samples(folder: Path, step: int, learned: float, side: int) -> list[Sample]:
    made = []
    for number, prompt in enumerate(PROMPTS):
        for seed in (0, 1):
            file = f"samples/step-{step}/p{number:02d}-s{seed}.png"
            picture = kite(GROUNDS[number], learned, 10 * number + seed, side)
            png.write(folder / file, picture, {"prompt": prompt, "seed": seed, "steps": 20})
            made.append(Sample(prompt=prompt, seed=seed, file=file))
    return made
