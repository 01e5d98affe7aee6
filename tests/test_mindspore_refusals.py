"""What a user of either engine is told where the other one, or nothing that goes together, is there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from runs import pictures, recipe

from gesso import cli, doctor, samplers
from gesso.errors import Exit
from gesso.importers import translate

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["DPM2", "DPM2 a Karras", "DPM++ SDE", "TCDScheduler"])
def test_schedulers_that_mindone_fails_with_are_refused_at_the_start(
    name: str, tmp_path: Path, blank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, blank, engine="mindspore", sample={"prompts": ["a cat"], "scheduler": name})
    assert cli.main(["train", str(path)]) == Exit.RECIPE
    said = capsys.readouterr().err
    assert f'cannot draw with sample.scheduler = "{name}": {samplers.NO_MINDSPORE[samplers.read(name).kind]}' in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("device", "code"), [("npu:1", Exit.DONE), ("npu:x", Exit.RECIPE), ("cuda:1", Exit.RECIPE)])
def test_one_of_several_npus_may_be_named(device: str, code: int, tmp_path: Path, blank: Path) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, blank, engine="mindspore", train={"device": device})
    assert cli.main(["train", str(path), "--dry-run"]) == code


@pytest.mark.parametrize("verb", [["generate", "--model", "tiny"], ["compare", "tiny"]])
def test_pictures_to_begin_with_are_for_pytorch(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(pictures(tmp_path / "pictures").glob("*.png"))
    given = [*verb, "--prompt", "a cat", "--out", str(tmp_path / "drawn"), "--image", str(image)]
    assert cli.main([*given, "--engine", "mindspore", "--dry-run"]) == (Exit.RECIPE if "generate" in verb else 0)
    assert cli.main([*given, "--engine", "mindspore"]) == Exit.RECIPE
    assert "--image is for --engine torch alone" in capsys.readouterr().err


def test_both_verbs_that_draw_ask_the_engine_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["generate", "--model", "tiny"], ["compare", "tiny"]):
        given = [*verb, "--prompt", "a cat", "--out", str(tmp_path / verb[0]), "--engine", "mindspore"]
        assert cli.main(given) == Exit.DEVICE
        said = capsys.readouterr().err
        # This environment's other libraries are as PyTorch wants them: nothing is wrong with them.
        assert 'engine = "mindspore": mindspore is not installed; mindone is not installed\n' in said


BROKEN = {
    "import_error": ("raise ImportError('cannot import name resolve_revision')", "cannot import name resolve_revision"),
    "runtime_error": ("raise RuntimeError('Failed to load the backend extension: torch_npu')", "torch_npu"),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_pytorchs_libraries_that_do_not_go_together_end_a_run_with_one_sentence(how: str, tmp_path: Path) -> None:
    code, said = BROKEN[how]
    package = tmp_path / "broken" / "diffusers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "gesso", "generate", "--model", "tiny", "--prompt", "a cat", "--out", "drawn"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == Exit.DEVICE
    assert 'engine = "torch": its libraries do not go together here' in ended.stderr
    assert said in ended.stderr
    assert "`gesso doctor` names what is wrong" in ended.stderr


def test_a_scripts_command_is_carried_out_on_mindspore() -> None:
    command = ["train_text_to_image_lora.py", "--pretrained_model_name_or_path=tiny", "--train_data_dir=photos"]
    assert "[torch]" in translate(command).text
    for given in (["--engine=mindspore"], ["--engine", "mindspore"]):
        text = translate([*command, *given]).text
        assert 'engine = "mindspore"  # --engine' in text
        assert "[torch]" not in text
    stopped = translate([*command, "--engine=mindspore", "--use_8bit_adam"]).stopped
    assert any("the MindSpore engine does not have" in entry.note for entry in stopped)
    assert translate([*command, "--engine=jax"]).stopped


def test_mindones_own_drawing_command_draws_on_mindspore() -> None:
    command = ["text_to_image.py", "--prompt=a cat", "--ckpt_path=runs/dog"]
    assert "--engine" not in translate(command).text
    assert "--engine=mindspore" in translate([*command, "--engine=mindspore"]).text.split()
    assert translate([*command, "--engine=jax"]).stopped


def test_the_doctor_says_whose_environment_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = [each for each in doctor.examine("mindspore").findings if each.about == "engine"]
    assert note.text.endswith('and mindspore is not: this environment is for engine = "torch"')
    assert note.fix == "gesso doctor --engine torch"

    def without_torch(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "2.10.0" if name == "mindspore" else version(name)

    assert list(doctor._other("torch")) == []
    monkeypatch.setattr(doctor, "version", without_torch)
    (note,) = doctor._other("torch")
    assert note.fix == "gesso doctor --engine mindspore"
