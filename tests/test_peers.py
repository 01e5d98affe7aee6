"""The comparisons with diffusers' and mindone's scripts (benchmarks/peers): what can be tested without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from gesso.recipe import load
from gesso.settings import compiled

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/peers/run.py; what it imports by short names is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(PEERS))
    before = set(sys.modules)
    path = list(sys.path)
    yield import_module("run")
    sys.path[:] = path
    for name in {"run", "cases", "measure", "run_mindone", "cases_mindone", "tiny_models", "indices"} - before:
        sys.modules.pop(name, None)


def test_every_recipe_is_one(peers: ModuleType, tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, tmp_path)
    names = set()
    for case in (*peers.SD, *peers.SDXL):
        (tmp_path / f"base-{case.model}-v_prediction").mkdir(exist_ok=True)
        (tmp_path / f"base-{case.model}").mkdir(exist_ok=True)
        recipe = load(bench.recipe(case, tmp_path, 8)).recipe
        assert recipe.train.batch == case.batch
        assert recipe.optim.lr == case.lr
        assert bool(recipe.prior.prompt) == case.prior == ("--with_prior_preservation" in case.flags)
        names.add((case.model, case.name))
    assert len(names) == len(peers.SD) + len(peers.SDXL)


def test_every_recipe_against_mindone_is_one(peers: ModuleType, tmp_path: Path) -> None:
    mindone = import_module("run_mindone")
    bench = mindone.Mindone(tmp_path, tmp_path)
    for graphs in (False, True):
        bench.extra = mindone.GRAPHS if graphs else mindone.EAGER
        for case in (*mindone.SD, *mindone.SDXL):
            recipe = load(bench.recipe(case, tmp_path, 6)).recipe
            assert recipe.engine == "mindspore"
            assert compiled(recipe) is graphs
            assert ("--lora_rank" in case.flags) == (recipe.adapter.kind == "lora")
            assert bool(recipe.prior.prompt) == ("--with_prior_preservation" in case.flags)
            assert ("--placeholder_token" in case.flags) == (recipe.adapter.kind == "ti") == bool(recipe.tokens)
            assert case.precomputes == case.script.endswith("train_text_to_image_sdxl")
    assert len({(case.model, case.name) for case in (*mindone.SD, *mindone.SDXL)}) == len(mindone.SD + mindone.SDXL)
    assert json.loads((bench.base(mindone.SDXL[0]) / "model_index.json").read_text())["text_encoder_2"]


def test_there_is_an_index_for_every_pair_of_pictures(peers: ModuleType) -> None:
    assert np.gcd(peers.PICTURES, peers.CLASS_PICTURES) == 1
    indices = import_module("indices").indices
    rows = np.array([[2, 0, 5, 6], [1, 2, 4, 3]])  # of three pictures and four class pictures, whose ids are 3 to 6
    found = indices(rows, (3, 4))
    assert [k % 3 for k in found] == [2, 0, 1, 2]
    assert [k % 4 for k in found] == [2, 3, 1, 0]
    assert indices(rows, None) == [2, 0, 5, 6, 1, 2, 4, 3]


def test_a_script_that_encodes_beforehand_gets_the_noise_of_each_picture(peers: ModuleType) -> None:
    by_picture = import_module("indices").by_picture
    drawn = np.arange(1.0, 5.0).reshape(2, 2, 1)
    batches = by_picture(np.array([[4, 0], [1, 5]]), drawn)
    assert [next(batches).ravel().tolist() for _ in range(4)] == [[2, 3], [0, 0], [1, 4], [0, 0]]
    with pytest.raises(ValueError, match="more than one epoch"):
        next(by_picture(np.array([[4, 0], [0, 5]]), drawn))


def test_the_stand_in_for_datasets_reads_a_folder_of_captioned_pictures(peers: ModuleType, tmp_path: Path) -> None:
    code = (
        "import datasets, sys; from datasets import disable_caching, load_dataset; disable_caching()\n"
        "data = load_dataset('imagefolder', data_files={'train': sys.argv[1] + '/**'}, cache_dir=None)['train']\n"
        "seen = data.with_transform(lambda rows: {'sizes': [i.size for i in rows['image']], 'text': rows['text']})\n"
        "print(len(data), data.column_names, seen[2]['sizes'], seen[2]['text'])\n"
    )
    assert _said(peers, tmp_path, code) == ["3 ['image', 'text'] (64, 80) a photo of thing 2"]


def test_the_stand_in_for_datasets_maps_what_is_transformed(peers: ModuleType, tmp_path: Path) -> None:
    code = (
        "import sys; from datasets import load_dataset; from datasets.fingerprint import Hasher\n"
        "def sized(rows): return {**rows, 'sizes': [i.size for i in rows['image']]}\n"
        "def first(rows): return {'words': [t.split()[-1] for t in rows['text']]}\n"
        "def second(rows): return {'at': [len(rows['sizes'])] * len(rows.pop('sizes'))}\n"
        "data = load_dataset('imagefolder', data_files={'train': sys.argv[1] + '/**'}, cache_dir=None)['train']\n"
        "data = data.with_transform(sized).map(first, batched=True, new_fingerprint=Hasher.hash('one'))\n"
        "data = data.map(second, batched=True, batch_size=2, new_fingerprint=Hasher.hash('two'))\n"
        "print(len(data), data.column_names, Hasher.hash('one') == Hasher.hash('two'))\n"
        "for row in (data[i] for i in range(3)): print(row['words'], row['at'], row['sizes'])\n"
    )
    assert _said(peers, tmp_path, code) == [
        "3 ['image', 'text', 'words', 'at'] False",
        "0 2 (64, 80)",
        "1 2 (64, 80)",
        "2 1 (64, 80)",
    ]


def _said(peers: ModuleType, tmp_path: Path, code: str) -> list[str]:
    """What Python prints that runs `code` on a folder of three pictures, with the stand-ins for mindone's scripts."""
    folder = peers.pictures(tmp_path / "pictures", 3, captions=True)
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(PEERS / "standins_mindone")},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in for torchvision.transforms, as long as the test lasts."""
    if any(Path(folder, "torchvision").is_dir() for folder in sys.path):
        pytest.skip("torchvision itself is installed")
    monkeypatch.syspath_prepend(str(PEERS / "standins"))
    yield import_module("torchvision.transforms")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def test_the_stand_in_crops_and_scales(transforms: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    whole = transforms.Compose(
        [
            transforms.Resize(16),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    np.testing.assert_allclose(whole(picture).numpy(), pixels[4:20].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert transforms.Resize(8, interpolation=transforms.InterpolationMode.BICUBIC)(picture).size == (8, 12)
    top, left, height, width = transforms.RandomCrop(16).get_params(picture, (16, 16))
    assert (left, height, width) == (0, 16, 16)
    assert 0 <= top <= 8
    np.testing.assert_array_equal(transforms.RandomHorizontalFlip(p=1.0)(picture), pixels[:, ::-1])
