"""Uploaded files: a multipart body goes to files of the spool as its bytes arrive, and never lies in memory.

In: a request. Out: a `Form` with its text fields and files, which are deleted when the block that reads it ends. File
names and types that a client gives are not used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from clipautt.settings import settings
from ray_jobs.serve.refusals import RefusedError
from ray_jobs.serve.web.pace import Pace
from ray_jobs.serve.web.spool import Spool, SpoolFile

_FILE_FIELD = "video"
_FRAMING_BYTES = 64 * 1024
"""Bytes that a multipart body may hold besides its files."""
_SHOWN_CHARACTERS = 40
_SILENT = logging.Logger("multipart", logging.CRITICAL)
"""The parser would log a line, with bytes of the body in it, for each body that it cannot read."""


@dataclass(frozen=True)
class Upload:
    """An uploaded file, which is deleted when its request has been answered."""

    path: Path
    """Where it lies."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Form:
    """A multipart body."""

    fields: dict[str, list[str]]
    """Name of a text field → its values, in the order of the body."""
    videos: list[Upload]
    """The files, in the order of the body."""
    seconds: float
    """From the end of the headers to the last byte of the body."""


@settings
class FormConfig:
    """How uploads may arrive."""

    bytes_per_second: PositiveFloat = 16384.0
    """Slowest upload that is waited for, bytes/s."""
    grace_seconds: PositiveFloat = 10.0
    """How long an upload may be slower at first, s."""
    stall_seconds: PositiveFloat = 30.0
    """How long an upload that was faster may pause, s."""
    max_fields: PositiveInt = 64
    """Most text fields."""
    max_field_bytes: PositiveInt = 16 * 1024
    """Longest text field, bytes."""


def most_body_bytes(max_files: int, max_bytes: int) -> int:
    """Most bytes of a body with so many files of so many bytes each."""
    return max_files * max_bytes + _FRAMING_BYTES


@asynccontextmanager
async def read_form(
    request: Request,
    spool: Spool,
    *,
    max_bytes: int,
    max_files: int = 1,
    fields: Collection[str] = (),
    config: FormConfig | None = None,
) -> AsyncIterator[Form]:
    """Read a request's multipart body; its files are deleted when the block ends, however it ends.

    Args:
        request: The request, of which nothing has been read.
        spool: Where the files go.
        max_bytes: Most bytes of a file.
        max_files: Most files `video`; there is at least one.
        fields: Names of the text fields that are allowed.
        config: How it may arrive.

    Raises:
        RefusedError: `malformed`, `too_large`, `too_slow`, `not_a_video` (an empty file) or `busy` (no room).
    """
    reader = _FormReader(spool, max_bytes=max_bytes, max_files=max_files, fields=fields, config=config or FormConfig())
    try:
        yield await reader.read(request)
    finally:
        reader.remove()


@dataclass
class _Part:
    """A field or file that is arriving."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: tuple[bytes, bytes] = (b"", b"")
    """Name and value of the header that is arriving."""
    name: str = ""
    file: SpoolFile | None = None
    text: bytearray = field(default_factory=bytearray)


class _FormReader:
    """Takes a multipart body apart as it arrives, https://www.rfc-editor.org/rfc/rfc7578."""

    def __init__(
        self, spool: Spool, *, max_bytes: int, max_files: int, fields: Collection[str], config: FormConfig
    ) -> None:
        self.spool = spool
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.allowed = set(fields)
        self.config = config
        self.files: list[SpoolFile] = []
        self.fields: dict[str, list[str]] = {}
        self._num_fields = 0
        self._part = _Part()
        self._complete = False

    async def read(self, request: Request) -> Form:
        """The form; raises as `read_form`."""
        began = time.perf_counter()
        parser = self._parser(request)
        announced = request.headers.get("content-length", "0")
        if announced.isdigit():
            self._check_body(int(announced))
            self.spool.check_room(int(announced))
        await self._receive(request, parser)
        if not self._complete:
            raise RefusedError("malformed", "the body ends before its last part does")
        if not self.files:
            raise RefusedError("malformed", f"there is no file `{_FILE_FIELD}` in the body")
        videos = [Upload(file.path, file.size) for file in self.files]
        return Form(self.fields, videos, time.perf_counter() - began)

    def remove(self) -> None:
        """Delete the files."""
        for file in self.files:
            file.remove()

    def _parser(self, request: Request) -> MultipartParser:
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data":
            raise RefusedError("malformed", f"the body should be multipart/form-data with a file `{_FILE_FIELD}`")
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise RefusedError("malformed", "the header Content-Type has no boundary")
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_end,
                    "on_end": self._on_last_end,
                },
            )
        except FormParserError as error:
            raise RefusedError("malformed", "the boundary in the header Content-Type is too long") from error
        parser.logger = _SILENT
        return parser

    async def _receive(self, request: Request, parser: MultipartParser) -> None:
        """Hand the body to the parser, as long as it arrives fast enough."""
        pace = Pace(self.config.bytes_per_second, self.config.grace_seconds, self.config.stall_seconds)
        received = 0
        more = True
        while more:
            asked = time.perf_counter()
            try:
                message = await asyncio.wait_for(request.receive(), max(pace.seconds_left, 0))
            except asyncio.TimeoutError as error:
                slowest = f"{self.config.bytes_per_second / 1000:g} kB/s"
                raise RefusedError(
                    "too_slow", f"the body arrived too slowly; at least {slowest} are expected"
                ) from error
            if message["type"] == "http.disconnect":
                raise RefusedError("malformed", "the connection ended before the body did")
            body, more = message.get("body", b""), message.get("more_body", False)
            pace.wait(time.perf_counter() - asked)
            pace.move(len(body))
            received += len(body)
            self._check_body(received)
            try:
                parser.write(body)
            except FormParserError as error:
                raise RefusedError(
                    "malformed", "the body is not multipart/form-data with the announced boundary"
                ) from error

    def _check_body(self, num_bytes: int) -> None:
        if num_bytes <= most_body_bytes(self.max_files, self.max_bytes):
            return
        if self.max_files == 1:
            raise self._too_large()
        most = self.max_files * self.max_bytes / 1e6
        raise RefusedError("too_large", f"the files together are too large; at most {most:g} MB are allowed")

    def _too_large(self) -> RefusedError:
        return RefusedError("too_large", f"the file is too large; at most {self.max_bytes / 1e6:g} MB are allowed")

    def _begin(self) -> None:
        self._part = _Part()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        name, value = self._part.header
        self._part.header = (name + data[start:end], value)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        name, value = self._part.header
        self._part.header = (name, value + data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._part.header
        self._part.headers[name.lower()] = value
        self._part.header = (b"", b"")

    def _on_headers(self) -> None:
        """A part's headers are complete: they say what it is."""
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        try:
            name = options.get(b"name", b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise RefusedError("malformed", "the name of a field is not UTF-8") from error
        if not name:
            raise RefusedError("malformed", "a part of the body has no name")
        self._part.name = name
        if b"filename" in options:
            self._begin_file(name)
        else:
            self._begin_field(name)

    def _begin_file(self, name: str) -> None:
        if name in self.allowed:
            raise RefusedError("malformed", f"the field {name!r} should be text, not a file")
        if name != _FILE_FIELD:
            raise self._unknown(name)
        if len(self.files) == self.max_files:
            raise RefusedError("too_large", f"too many files; at most {self.max_files} are allowed")
        self._part.file = self.spool.new_file()
        self.files.append(self._part.file)

    def _begin_field(self, name: str) -> None:
        if name == _FILE_FIELD:
            raise RefusedError("malformed", f"the field `{_FILE_FIELD}` should be a file, not text")
        if name not in self.allowed:
            raise self._unknown(name)
        self._num_fields += 1
        if self._num_fields > self.config.max_fields:
            raise RefusedError("too_large", f"too many fields; at most {self.config.max_fields} are allowed")

    def _unknown(self, name: str) -> RefusedError:
        shown = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
        allowed = ", ".join([_FILE_FIELD, *sorted(self.allowed)])
        return RefusedError("malformed", f"unknown field {shown!r}; allowed: {allowed}")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.file is None:
            if len(part.text) + end - start > self.config.max_field_bytes:
                most = self.config.max_field_bytes
                raise RefusedError(
                    "too_large", f"the field {part.name!r} is too long; at most {most} bytes are allowed"
                )
            part.text += data[start:end]
            return
        if part.file.size + end - start > self.max_bytes:
            raise self._too_large()
        part.file.write(memoryview(data)[start:end])

    def _on_end(self) -> None:
        part = self._part
        if part.file is not None:
            part.file.close()
            if part.file.size == 0 and self.max_files == 1:  # among several it costs itself
                raise RefusedError("not_a_video", "the file is empty")
            return
        try:
            self.fields.setdefault(part.name, []).append(part.text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RefusedError("malformed", f"the field {part.name!r} is not UTF-8") from error

    def _on_last_end(self) -> None:
        self._complete = True
