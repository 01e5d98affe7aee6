"""examples/inference.ipynb, from its first cell to its last, on a run of a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runs import gesso, pictures, recipe

NOTEBOOK = Path(__file__).parents[1] / "examples" / "inference.ipynb"
CHECK = """
import numpy as np
assert [file.relative_to(results).as_posix() for file in files] == [
    f"{folder}/image_{at}.png" for folder in prompts for at in range(2)
]
assert png.read(files[0])["prompt"] == prompts[0]
assert has_lora and (Path(results) / "grid.png").is_file()
assert np.array_equal(np.asarray(image), np.asarray(Image.open(files[0]))), "gesso and diffusers draw the same"
"""


def test_the_notebook_runs_as_it_stands(tmp_path: Path, blank: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    path = recipe(tmp_path, blank, engine="torch", train={"steps": 2, "batch": 2}, adapter={"rank": 2})
    assert gesso("train", path).returncode == 0
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    (chosen,) = [at for at, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ())]
    own = "".join(cells[chosen]["source"])
    assert all(f"{name} = " in own for name in ("model", "prompts", "negative", "pictures", "steps", "results"))
    mine = f"""
model = {str(tmp_path / "out")!r}
prompts = ["a cat", "a dog"]
negative, pictures, steps, guidance, results = "blurry", 2, 2, 2.0, {str(tmp_path / "results")!r}
"""
    code = [mine if at == chosen else "".join(cell["source"]) for at, cell in enumerate(cells)]
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, CHECK])], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
