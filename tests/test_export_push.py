"""`gesso export --push` against a stub of the Hub on this machine; no other host is named."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from export_parts import trained
from runs import gesso

TOKEN = "hf_stub"


class Hub(ThreadingHTTPServer):
    """Takes a repository, and one commit whose files come in it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse = 0

    @property
    def private(self) -> bool:
        """Whether the repository was asked for as private; older libraries say so in another word."""
        return bool(self.made.get("private")) or self.made.get("visibility") == "private"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self._say(404, {"error": "not here"})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.asked.append(self.path)
        if self.server.refuse or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(self.server.refuse or 401, {"error": "no"})
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(data)
            self._say(200, {"url": f"{self.server.address}/me/dog", "id": "me/dog", "name": "me/dog"})
        elif self.path.startswith("/api/validate-yaml"):
            self._say(200, {"errors": [], "warnings": []})
        elif self.path.startswith("/api/models/me/dog/preupload/"):
            paths = [each["path"] for each in json.loads(data)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._say(200, {"files": [{"path": path, **plain} for path in paths]})
        elif self.path.startswith("/api/models/me/dog/commit/"):
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = "0" * 40
            self._say(200, {"commitUrl": f"{self.server.address}/me/dog/commit/{oid}", "commitOid": oid})
        else:
            self._say(404, {"error": self.path})

    def _say(self, code: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


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
