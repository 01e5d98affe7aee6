"""Files behind URLs on this machine: an HTTP server with or without ranges, and an S3-style bucket."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY = "AKIDSTUB"
WHEN = "Fri, 02 Jan 2026 03:04:05 GMT"


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `ranges` off: whole files alone. `fail` answers that many requests with 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.tags = True
        self.ranges = True
        self.fail = 0
        self.refuse = 0
        self.bucket = False
        self.asked: list[tuple[str, str, str]] = []
        """Method, path with query, and range of every request."""
        self.sent = 0

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who asked may be gone
            raise

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        self.asked, self.sent = [], 0


class Answers(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range") or ""
        self.server.asked.append((self.command, self.path, wanted))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)
        if self.server.fail:
            self.server.fail -= 1
            return self._send(503, b"", body=body)
        if self.server.refuse or (self.server.bucket and KEY not in self.headers.get("Authorization", "")):
            return self._send(self.server.refuse or 403, b"", body=body)
        if self.server.bucket and "list-type" in query:
            return self._send(200, self._listing(path.strip("/"), query["prefix"][0], query.get("delimiter", [""])[0]))
        data = self.server.files.get(path)
        if data is None:
            return self._send(404, b"", body=body)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match and self.server.ranges:
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return self._send(206, data[first : last + 1], span, body=body, of=data)
        return self._send(200, data, body=body, of=data)

    def _listing(self, bucket: str, prefix: str, delimiter: str) -> bytes:
        keys = sorted(path.removeprefix(f"/{bucket}/") for path in self.server.files if path.startswith(f"/{bucket}/"))
        entries, folders = "", set()
        for key in (key for key in keys if key.startswith(prefix)):
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            size = len(self.server.files[f"/{bucket}/{key}"])
            entries += (
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>&quot;{size:x}&quot;</ETag>"
                "<LastModified>2026-01-02T03:04:05.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
            f"{entries}{common}</ListBucketResult>"
        ).encode()

    def _send(
        self, code: int, data: bytes, more: dict[str, str] | None = None, *, body: bool = True, of: bytes | None = None
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        if of is not None and self.server.tags:
            self.send_header("ETag", f'"{len(of):x}"')
            self.send_header("Last-Modified", WHEN)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.server.sent += len(data)
            with suppress(ConnectionError):  # who asked may have read enough
                self.wfile.write(data)

    def log_message(self, format: str, *values: object) -> None:
        pass


@contextmanager
def serving(*, bucket: bool = False) -> Iterator[Server]:
    """A server that runs until the block ends."""
    server = Server()
    server.bucket = bucket
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
