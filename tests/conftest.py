"""What several tests stand on: a tiny random Stable Diffusion folder, made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach out
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once on two cores


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline folder with random weights, 64 × 64 pixels, 16 × 16 latents."""
    from gesso.engines.torch.demo.blank import write

    folder = tmp_path_factory.mktemp("blank")
    write(folder)
    return folder


@pytest.fixture(scope="session")
def blank_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL pipeline folder with random weights, 64 × 64 pixels, 16 × 16 latents."""
    from gesso.engines.torch.demo.blank_xl import write

    folder = tmp_path_factory.mktemp("blank_xl")
    write(folder)
    return folder


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for the reference engine, 32 × 32 pixels."""
    from gesso.engines.reference.model import write

    return write(tmp_path_factory.mktemp("linear"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GESSO_CACHE", str(tmp_path_factory.mktemp("cache")))
