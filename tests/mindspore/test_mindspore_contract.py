"""The contract of every engine, kept by the MindSpore engine: the very tests of tests/test_engine_contract.py."""

from __future__ import annotations

import pytest
from test_engine_contract import *  # noqa: F403


@pytest.fixture
def name() -> str:
    return "mindspore"
