"""Files behind a URL, read in parts through fsspec: http(s), s3, and every other file system that has a package for it.

What is read is one range of bytes a request; nothing is unpacked or kept but a few blocks. Credentials are fsspec's own
affair (AWS_… variables, ~/.aws, ~/.netrc). A URL is shown and recorded without user and query, which may hold a secret;
$NAME in a query stands for that environment variable, so that a signature need not stand in a recipe.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from gesso.errors import NetworkError, RecipeError

WAITS = (0.5, 2.0, 5.0)
"""Seconds before each further attempt at a request that failed for a passing reason."""
BLOCK = 2**20
BLOCKS = 16
"""Bytes of a block, and how many of them an open file holds."""
AT_ONCE = 16
PASSING = (408, 425, 429)
"""Answers of a host (HTTP status) that ask for patience."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SECRET = re.compile(r"sig|token|key|cred|secret|passw|auth", re.IGNORECASE)
BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<choices>[^{}]*,[^{}]*))\}")
VARIABLE = re.compile(r"\$(\w+)")
MOST = 1_000_000
"""How many files one pattern may name."""

Answer = TypeVar("Answer")


def is_url(path: str) -> bool:
    return bool(SCHEME.match(path))


@dataclass(frozen=True, slots=True)
class Remote:
    """A file behind a URL: `size` bytes, in the version that `stamp` (ETag or time) tells; "" where nothing tells.

    `str()` is the URL as it may be shown; `_query` is not.
    """

    url: str
    size: int
    stamp: str = ""
    _query: str = field(default="", repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return self.url

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer where the file ends. Raises NetworkError."""
        if size <= 0 or offset >= self.size:
            return b""
        system, path = _system(self.url + self._query)

        def part() -> bytes:
            with system.open(path, "rb", cache_type="none", size=self.size) as file:
                file.seek(offset)
                data = file.read(min(size, self.size - offset))
            return bytes(data)

        data = _tried(part, self.url)
        if len(data) < min(size, self.size - offset):
            raise NetworkError(
                f"the file is shorter than the {self.size} bytes that were announced",
                where=self.url,
                todo="start again; the file may just be written anew",
            )
        return data

    def open(self) -> io.BufferedReader:
        """The file as one that can be read anywhere, holding a few blocks of it in memory."""
        return io.BufferedReader(_Blocks(self), BLOCK)


class _Blocks(io.RawIOBase):
    """A remote file in whole blocks, those used last kept."""

    def __init__(self, file: Remote) -> None:
        self.file, self.at = file, 0
        self.held: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.file.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self.at, BLOCK)
        if number not in self.held:
            self.held[number] = self.file.read(number * BLOCK, BLOCK)
            if len(self.held) > BLOCKS:
                self.held.popitem(last=False)
        self.held.move_to_end(number)
        data = self.held[number][start : start + len(buffer)]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def files(url: str, endings: tuple[str, ...]) -> list[Remote]:
    """The files that a URL means: itself, every file of a pattern ({000..012}, {a,b}, *), or those of a folder.

    Files of a folder or a * are in the order of their names, and only those with one of `endings`.
    Raises RecipeError for a URL with a secret in it, or a file system that is not installed; NetworkError where the
    host cannot be reached or has no such file.
    """
    _check(url)
    plain, mark, query = url.partition("?")
    query = mark + VARIABLE.sub(_variable, query)
    found: list[Remote] = []
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gesso-remote")
    with pool:
        for each in pool.map(lambda one: _meant(one, query, endings), _expanded(plain)):
            found += each
    if not found:
        raise NetworkError(
            f"there is no file {' or '.join(endings)} there",
            where=plain,
            todo="check the URL: it is a file or a folder",
        )
    return found


def beside(file: Remote, ending: str) -> Remote | None:
    """The file of the same name with `ending` behind it, if there is one."""
    system, path = _system(file.url + ending + file._query)
    try:
        return _described(_tried(lambda: system.info(path), file.url), file.url + ending, file._query)
    except NetworkError as error:
        if isinstance(error, _Missing):
            return None
        raise


class _Missing(NetworkError):
    """The host answers, and has no such file, or does not show it."""


def _meant(url: str, query: str, endings: tuple[str, ...]) -> list[Remote]:
    system, path = _system(url + query)
    if "*" in url or "[" in url:
        # fsspec takes ? for a wildcard too, which in a URL begins the query.
        details = _tried(lambda: system.glob(path, detail=True), url)
    elif url.endswith(endings):
        return [_described(_tried(lambda: system.info(path), url), url, query)]
    else:
        details = _tried(lambda: system.find(path, detail=True), url)
    names = sorted(name for name, about in details.items() if name.endswith(endings) and about["type"] == "file")
    return [_described(details[name], system.unstrip_protocol(name), query) for name in names]


def _described(about: dict[str, Any], url: str, query: str) -> Remote:
    if about.get("size") is None:
        raise NetworkError(
            "the host does not tell the size of this file, so that it cannot be read in parts",
            where=url,
            todo="download the file, and give its path",
        )
    if about.get("partial") is False:
        raise _no_parts(url)
    tells = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "mtime", "created")
    stamp = next((str(about[name]) for name in tells if about.get(name)), "")
    return Remote(url, int(about["size"]), stamp, query)


def _tried(action: Callable[[], Answer], url: str) -> Answer:
    """What `action` gives, after some attempts where what goes wrong may pass. Raises NetworkError.

    Nothing of the library's own message is shown: it may hold the whole URL, or headers.
    """
    for wait in WAITS:
        try:
            return action()
        except Exception as error:  # each file system has its own kinds, which share no class
            lasting = _lasting(error, url)
        if lasting:
            raise lasting
        time.sleep(wait)
    try:
        return action()
    except Exception as error:
        raise _lasting(error, url) or NetworkError(
            f"cannot be read ({_kind(error)}), after {len(WAITS) + 1} attempts",
            where=url,
            todo="check the connection and the address, and start again: a run goes on where it was",
        ) from None


def _lasting(error: Exception, url: str) -> NetworkError | None:
    """What another attempt would not mend; None for what may pass."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec calls everything so that keeps it from asking for a file's size
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return _Missing("there is no such file on the host", where=url, todo="check the URL")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return NetworkError(
            "the host does not allow reading this",
            where=url,
            todo="set the credentials that its file system reads: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3, "
            "~/.netrc for http",
        )
    if isinstance(error, ValueError) and ("range requests" in str(error) or "seek" in str(error)):
        return _no_parts(url)
    if isinstance(error, ValueError) or (isinstance(status, int) and 400 <= status < 500 and status not in PASSING):
        return NetworkError(f"cannot be read ({_kind(error)})", where=url, todo="check the URL")
    return None


def _kind(error: Exception) -> str:
    status = getattr(error, "status", None)
    return type(error).__name__ + (f", status {status}" if status else "")


def _no_parts(url: str) -> NetworkError:
    return NetworkError(
        "this server does not send parts of a file (range requests), so that pictures cannot be read in place",
        where=url,
        todo="download the file, and give its path; or put it on a server or bucket that does",
    )


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises RecipeError where it needs a package."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0].lower()
    options = {"client_kwargs": {"trust_env": True}} if scheme in ("http", "https") else {}
    try:
        return url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError:
        raise RecipeError(
            f"reading {scheme}:// needs a package that is not installed",
            todo="pip install 'gesso[remote]' for http and s3; others need fsspec's package for them, such as gcsfs",
        ) from None
    except ValueError:
        raise RecipeError(f"{scheme}:// is no file system that fsspec knows", todo="check data.path") from None


def _variable(match: re.Match[str]) -> str:
    try:
        return os.environ[match[1]]
    except KeyError:
        raise RecipeError(f"data.path names ${match[1]}, which is not set", todo=f"export {match[1]}=…") from None


def _check(url: str) -> None:
    """RecipeError where a secret stands in the URL: the recipe is written down with every run."""
    parts = urlsplit(url.replace("{", "").replace("}", "").replace("[", "").replace("]", ""))
    secret = [name for name, value in parse_qsl(parts.query) if SECRET.search(name) and not value.startswith("$")]
    if "@" in parts.netloc or secret:
        what = f'its query has "{secret[0]}"' if secret else "it has a user or password"
        raise RecipeError(
            f"data.path holds what may be a secret ({what}), and the recipe is written down with every run",
            todo="leave credentials to the environment (AWS_ACCESS_KEY_ID, ~/.netrc); "
            "of a signed URL put the query into a variable: ?$SIGNATURE",
        )


def _expanded(url: str) -> Iterator[str]:
    """The URL for each number of its {000..012} and each choice of its {a,b}, as a shell would."""
    match = BRACES.search(url)
    if not match:
        yield url
        return
    values: Iterable[str] = match["choices"].split(",") if match["choices"] is not None else _numbers(match)
    for value in values:
        yield from _expanded(url[: match.start()] + value + url[match.end() :])


def _numbers(match: re.Match[str]) -> Iterator[str]:
    first, last = int(match["first"]), int(match["last"])
    if not first <= last < first + MOST:
        raise RecipeError(f"the range {match[0]} in data.path names no files, or too many", todo="write {000..012}")
    same = len(match["first"]) == len(match["last"])
    width = len(match["first"]) if same or match["first"].startswith("0") else 0
    return (f"{number:0{width}d}" for number in range(first, last + 1))
