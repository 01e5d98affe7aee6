"""A stub of the Hub on this machine that takes models: what the library asks for when it uploads a folder."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stub"


class Hub(ThreadingHTTPServer):
    """Takes a repository, and one commit whose files come in it. `refuse` answers every request with that status; with
    `takes` off, repositories are made and no commits are taken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse = 0
        self.takes = True

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
        elif not self.server.takes:
            self._say(403, {"error": "no"})
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


@contextmanager
def taking() -> Iterator[Hub]:
    """A stub that runs until the block ends."""
    made = Hub()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
