"""`gesso export --push` against a stub of the Hub on this machine; no other host is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from export_parts import trained
from push_parts import TOKEN, Hub, taking
from runs import gesso


@pytest.fixture
def hub() -> Iterator[Hub]:
    with taking() as made:
        yield made


@pytest.fixture(scope="module")
def adapter(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("lora", blank, tmp_path_factory.mktemp("pushed") / "lora")


def push(hub: Hub, adapter: Path, base: Path, out: Path, *flags: str, **environment: str) -> Any:
    given = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
    given |= {"HF_HOME": str(out.parent / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
    return gesso(
        "export", adapter, "--base", base, "--to", "kohya", "--out", out, "--push", "me/dog", *flags, env=given
    )


def test_a_folder_is_pushed_as_it_is_and_private(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog"
    done = push(hub, adapter, blank, out)
    assert done.returncode == 0, done.stderr
    assert f"on the Hub: {hub.address}/me/dog" in done.stdout
    assert hub.private
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(hub.files) == {"README.md", "lora.safetensors"}


def test_a_files_card_is_the_repositorys(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog.safetensors"
    done = push(hub, adapter, blank, out, "--public")
    assert done.returncode == 0, done.stderr
    assert not hub.private
    assert hub.files == {"dog.safetensors": out.read_bytes(), "README.md": (tmp_path / "dog.md").read_bytes()}


def test_what_the_hub_refuses_is_said_and_the_files_stay(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    for code, said in ((401, "does not accept the token"), (403, "may not write to me/dog")):
        hub.refuse = code
        out = tmp_path / f"{code}.safetensors"
        done = push(hub, adapter, blank, out)
        assert done.returncode == 6
        assert said in done.stderr
        assert out.is_file()
    assert hub.files == {}


def test_a_hub_that_is_not_there_and_names_that_cannot_be(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog"
    done = push(hub, adapter, blank, out, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_DISABLE_TELEMETRY="1")
    assert done.returncode == 6
    assert "me/dog: the upload failed" in done.stderr
    assert (out / "lora.safetensors").is_file()
    for name in ("me/do g", "me/..dog", "dog"):
        done = push(hub, adapter, blank, tmp_path / "other", "--push", name)
        assert done.returncode == 2
        assert "is no name on the Hub" in done.stderr
    done = push(hub, adapter, blank, tmp_path / "other", "--push", "", "--public")
    assert done.returncode == 2
    assert "--public is for an upload" in done.stderr
    assert not (tmp_path / "other").exists()


def test_without_a_token_nothing_is_made(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    done = push(hub, adapter, blank, tmp_path / "dog", HF_TOKEN="")
    assert done.returncode == 6
    assert "there is no token to upload with" in done.stderr
    done = push(hub, adapter, blank, tmp_path / "dog", HF_HUB_OFFLINE="1")
    assert done.returncode == 6
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not (tmp_path / "dog").exists()
    assert hub.asked == []


def test_no_host_is_asked_without_push(hub: Hub, adapter: Path, blank: Path, tmp_path: Path) -> None:
    given = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
    out = tmp_path / "dog.safetensors"
    done = gesso("export", adapter, "--base", blank, "--to", "single", "--out", out, env=given)
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
