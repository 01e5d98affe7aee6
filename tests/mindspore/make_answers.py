"""Writes what the MindSpore engine leaves for the tests of the other environment: adapters and their pictures.

`python -m tests.mindspore.make_answers` in the environment of the MindSpore engine; test_mindspore_parity.py holds that
it is still what would be written, tests/test_mindspore_outside.py that diffusers reads it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases
import tiny_models

from gesso.formats import tensors


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bases = {family: tiny_models.write(Path(folder) / family, family) for family in tiny_models.PIPELINES}
        for name in cases.EXCHANGED:
            family = cases.CASES[name].family
            _, weights = cases.run("mindspore", cases.CASES[name], bases)
            cases.write_lora(cases.place(name, "mindspore-lora"), weights)
            picture = cases.with_lora("mindspore", family, bases[family], cases.place(name, "mindspore-lora"))
            tensors.save(cases.place(name, "mindspore-picture"), {"picture": picture}, {})


if __name__ == "__main__":
    main()
