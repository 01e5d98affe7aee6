"""Tests of the MindSpore engine, run by `make mindspore-test` in their own environment; elsewhere not collected."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

try:
    version("mindspore")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """MindSpore and mindone warn of their own doings; what gesso does wrong is found by its tests elsewhere."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models by family."""
    from tiny_models import PIPELINES, write

    return {family: write(tmp_path_factory.mktemp(family), family) for family in PIPELINES}


@pytest.fixture(scope="session")
def blank(bases: dict[str, Path]) -> Path:
    """The tiny Stable Diffusion, in the place of the one that PyTorch writes."""
    return bases["sd"]
