"""Models, folders and disks broken in one place: one sentence each, and the exit code that says whose it is."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso import cli, models
from gesso.checkpoint import SLACK, Checkpoints
from gesso.commands import demo
from gesso.errors import Exit, RecipeError
from gesso.formats import lora, pipeline, png, tensors
from gesso.recipe import load, save
from gesso.storage import FullError

EVERY: dict[str, Any] = {
    "model.base": {"value": "tiny"},
    "model.revision": {"value": ""},
    "objective.prediction": {"value": "auto"},
    "objective.zero_snr": {"value": None},
}


@pytest.fixture
def model(blank: Path, tmp_path: Path) -> Path:
    """A whole model of one's own, to be broken."""
    return Path(shutil.copytree(blank, tmp_path / "model"))


def drawn(model: Path, *words: str) -> int:
    """The exit code of `gesso generate` on a model."""
    out = model.parent / "pics"
    given = ["--prompt", "x", "--steps", "1", "--device", "cpu", "--out", str(out), *words]
    code = cli.main(["generate", "--model", str(model), *given])
    assert not out.exists() or not list(out.glob("[!.]*"))
    return code


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file; None takes one out, "null" makes it null."""
    whole = {**json.loads(path.read_text()), **values}
    kept = {key: None if value == "null" else value for key, value in whole.items() if value is not None}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("model_index.json", {"_class_name": None}, "model_index.json: the model's configuration lacks _class_name"),
        ("model_index.json", {"_class_name": "Flux"}, "models of the kind Flux are not known yet"),
        ("model_index.json", {"unet": ["diffusers", "Linear"]}, "the model's unet is of the kind diffusers.Linear"),
        ("model_index.json", {"vae": ["os", "system"]}, "the model's vae is of the kind os.system"),
        ("model_index.json", {"vae": ["diffusers"]}, "the model's vae is of the kind diffusers, which"),
        ("model_index.json", {"text_encoder": None}, "the model's configuration lacks text_encoder"),
        ("model_index.json", {"scheduler": None}, "the model's configuration lacks scheduler"),
        ("scheduler/scheduler_config.json", {"beta_start": "null"}, "configuration lacks beta_start: it is null"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "lacks num_train_timesteps"),
        ("scheduler/scheduler_config.json", {"trained_betas": 3}, "lacks trained_betas"),
        ("vae/config.json", {"block_out_channels": None}, "vae/config.json: the model's configuration lacks block_out"),
        ("unet/config.json", {"sample_size": "big"}, "unet/config.json: sample_size is big"),
        ("unet/config.json", {"cross_attention_dim": 7}, "the model's unet cannot be read"),
        ("unet/config.json", {"down_block_types": ["None"]}, "the model's unet cannot be read"),
        ("text_encoder/config.json", {"hidden_size": "wide"}, "the model's text_encoder cannot be read"),
    ],
)
def test_a_configuration_that_lacks_something_is_named(
    file: str, values: dict[str, Any], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(model / file, **values)
    assert drawn(model) == Exit.RECIPE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", "", '"x"'])
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_file_that_is_not_json_is_named(
    file: str, text: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / file).write_text(text)
    assert drawn(model) == Exit.RECIPE
    assert str(model / file) in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"json: (this is not JSON|holds no JSON object)"):
        pipeline.read_json(model / file)


@pytest.mark.parametrize(
    ("effective", "said"),
    [
        ({"x": 1}, "the model's configuration lacks model.base"),
        ({**EVERY, "model.revision": 3}, '"model.revision" has no value'),
        ({**EVERY, "objective.prediction": {"value": "nonsense"}}, "the run's objective cannot be"),
        ([], "holds no JSON object"),
    ],
)
def test_a_run_whose_recipe_is_broken_is_no_model(effective: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "effective.json").write_text(json.dumps(effective))
    (tmp_path / models.LORA).write_bytes(b"")
    with pytest.raises(RecipeError, match=said) as caught:
        models.resolve(str(tmp_path))
    assert caught.value.where == str(tmp_path / "effective.json")


def test_a_model_of_the_reference_engine_is_not_drawn_with(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--model", str(linear), "--prompt", "x", "--out", str(linear.parent / "p")]) == 2
    assert "of the kind diffusers.Linear, which diffusers and transformers do not have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["/"], Exit.RECIPE, "/ is a whole disk, not a folder of pictures"),
        (["nope"], Exit.DATA, "nope"),
    ],
)
def test_new_says_what_matters_most(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("mine")
    assert cli.main(["new", *words]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "is there already" not in shown
    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_the_demo_hands_a_dry_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from gesso.demo import run

    seen: list[dict[str, Any]] = []

    def main(name: str, **given: Any) -> int:
        seen.append({"name": name, **given})
        return 0

    monkeypatch.setattr(run, "main", main)
    assert cli.main(["demo", "captions", "--dry-run", "--full"]) == 0
    assert seen == [{"name": "captions", "full": True, "flags": [], "dry_run": True}]
    assert "--dry-run" in str(demo.arguments.__code__.co_consts)


def limited(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python where no file may grow beyond 4 kB: the system refuses as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    whole = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + code
    return subprocess.run(
        [sys.executable, "-c", whole, *words], capture_output=True, text=True, preexec_fn=limit, check=False
    )


def test_tensorboard_on_a_full_disk_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom gesso.trackers.tensorboard import Tensorboard\nfrom gesso.events import Stepped\n"
        "at = pathlib.Path(sys.argv[1])\nboard = Tensorboard(at / 'logs', at)\n"
        "for step in range(200):\n"
        "    board.handle(Stepped(step=step, loss=1.0, lr=1.0, grad_norm=1.0, seconds=1.0))\n"
        "board.close()\nprint('done')\n"
    )
    done = limited(code, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == "TensorBoard events are no longer written, the run goes on: File too large\n"
    (tmp_path / "logs" / "x").write_text("")
    (tmp_path / "file").write_text("")
    code = code.replace("at / 'logs'", "at / 'file' / 'logs'")
    done = limited(code, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "done\n", 1), done.stderr


def test_what_tensorboard_got_before_the_disk_was_full_can_be_read(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    test_tensorboard_on_a_full_disk_is_one_line_and_no_traceback(tmp_path)
    found = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    assert [event.step for event in found] == list(range(len(found)))
    assert len(found) > 10


def test_a_picture_and_a_recipe_on_a_full_disk_leave_nothing_half(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nimport numpy as np\nfrom gesso.formats import png\n"
        "from gesso.errors import StorageError\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)\n"
        "try:\n    png.write(pathlib.Path(sys.argv[1]) / 'a.png', noise, {'prompt': 'x'})\n"
        "except StorageError as error:\n    print(type(error).__name__, error.what.split(':')[0])\n"
    )
    done = limited(code, str(tmp_path))
    assert done.stdout == "FullError no room on the disk\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def reaches_the_disk(write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often something was flushed to the disk."""
    flushed: list[int] = []
    own = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(handle)
        own(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        write()
    return len(flushed)


def test_pictures_and_recipes_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(None, ["--data.path", "photos"])
    picture = np.zeros((8, 8, 3), np.uint8)
    assert reaches_the_disk(lambda: png.write(tmp_path / "a.png", picture, {}), monkeypatch) >= 1
    assert reaches_the_disk(lambda: save(loaded, tmp_path), monkeypatch) >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "effective.json", "recipe.toml"]


def test_a_full_disk_is_told_the_size_of_the_whole_checkpoint(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays: dict[str, Any] = {"unet.a.lora_A.weight": np.zeros((4, 1000), np.float16)}
    arrays["unet.a.lora_B.weight"] = np.zeros((2, 4), np.float16)
    moments: dict[str, Any] = {"m": np.zeros(500, np.float32)}
    unet = tensors.load(blank / "unet" / "diffusion_pytorch_model.safetensors")
    weights = pipeline.part_files(blank, "unet", unet)
    files: dict[str, Any] = {
        "optimizer.safetensors": moments,
        models.LORA: lora.writer(arrays, lora.Config(rank=4, alpha=4.0)),
    }
    files |= {f"unet/{name}": write for name, write in weights.items()}
    monkeypatch.setattr("gesso.storage.free_bytes", lambda _: 0)
    with pytest.raises(FullError) as caught:
        Checkpoints(tmp_path).save(3, files, {})
    assert caught.value.needed == SLACK + 2000 + 4 * 4008 + sum(array.nbytes for array in unet.values())
    assert list(tmp_path.iterdir()) == []
