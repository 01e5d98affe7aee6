"""A stub of the Hub on this machine that gives data sets: what the library asks for when it fetches one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stub"


class Shelf(ThreadingHTTPServer):
    """One data set, me/dogs, in one commit. `refuse` answers everything with that status; `private` asks for TOKEN."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.given: list[str] = []
        """The files that were fetched, in order."""
        self.asked = 0
        self.refuse = 0
        self.private = False

    @property
    def commit(self) -> str:
        content = [(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(self.files.items())]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Shelf
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.asked += 1
        if server.refuse:
            return self._say(server.refuse, b"{}")
        if server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/datasets/me/dogs/tree/"):
            return self._json([self._entry(name) for name in sorted(server.files)])
        if path.startswith("/api/datasets/me/dogs"):
            revision = path.rpartition("/revision/")[2]
            if revision not in (path, "main", server.commit):
                return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [{"rfilename": name} for name in sorted(server.files)]
            return self._json({"id": "me/dogs", "sha": server.commit, "siblings": names, "private": server.private})
        before, found, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        if before == "/datasets/me/dogs" and found and name in server.files:
            data = server.files[name]
            if self.command == "GET":
                server.given.append(name)
            tags = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": server.commit}
            return self._say(200, data, tags)
        return self._say(404, b"{}", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"})

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _json(self, answer: Any) -> None:
        self._say(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _say(self, code: int, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        pass


@contextmanager
def shelved() -> Iterator[Shelf]:
    """A stub that runs until the block ends."""
    made = Shelf()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
