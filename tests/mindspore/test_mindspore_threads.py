"""Pictures are encoded in a thread that reads ahead while the engine trains: MindSpore itself would end the process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import numpy as np

from gesso.keys import generator


def test_a_step_and_an_encoding_at_once_are_each_what_they_are_alone(bases: dict[str, Path]) -> None:
    case = cases.CASES["lora"]
    pixels = generator(3, "pixels").uniform(-1, 1, (1, 3, 64, 56)).astype(np.float32)
    engine = cases.begun("mindspore", case, bases)
    alone = engine.encode_images(pixels)[0]
    losses = [cases.take(engine, case, step).loss for step in range(3)]
    engine = cases.begun("mindspore", case, bases)
    with ThreadPoolExecutor(2) as threads:
        beside = [threads.submit(engine.encode_images, pixels) for _ in range(12)]
        found = [cases.take(engine, case, step).loss for step in range(3)]
        assert all(np.array_equal(each.result()[0], alone) for each in beside)
    assert found == losses
