"""Where a request ends, told from its bytes as they arrive (RFC 9112, §6), so that no thread waits for the rest.

It errs on the side of "whole": gunicorn's parser says what is wrong with malformed or oversized requests.
"""

from __future__ import annotations

import re

LARGEST_HEAD = 1 << 20
"""Bytes; a larger head is for the parser to refuse."""

_LENGTH = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,12})[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_CHUNKED = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)
_EXPECTS = re.compile(rb"^expect[ \t]*:[ \t]*100-continue", re.IGNORECASE | re.MULTILINE)
_SIZE = re.compile(rb"([0-9a-fA-F]{1,12})[^\r\n]{0,256}\r\n")
_LONGEST_SIZE = 512


class Arrival:
    """The bytes of a connection, one request after the other. Of a body above `largest` bytes no more is awaited."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._buffer = bytearray()
        self._read = 0
        self.closed = False
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._head: int | None = None
        self._end: int | None = None
        self._chunk: int | None = None
        self.expects = False

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def whole(self) -> bool:
        """Whether nothing more is to be awaited; a body that the client broke off is for the application to refuse."""
        ready = self._end is not None and len(self._buffer) >= self._end
        return ready or (self.closed and self._head is not None)

    def feed(self, data: bytes) -> None:
        """More bytes; none mean that the client has closed its side."""
        self.closed = not data
        self._buffer += data
        self._look()

    def read(self, size: int) -> bytes:
        """At most `size` bytes of the current request; none where no more of it has come."""
        until = len(self._buffer) if self._end is None else min(self._end, len(self._buffer))
        data = bytes(memoryview(self._buffer)[self._read : min(self._read + size, until)])
        self._read += len(data)
        return data

    def next(self) -> None:
        """Drops the current request, whether it was read or not."""
        del self._buffer[: self._read if self._end is None else self._end]
        self._read = 0
        self._begin()
        self._look()

    def _look(self) -> None:
        if self._head is None:
            self._find_head()
        if self._chunk is not None and self._end is None:
            self._find_last_chunk()

    def _find_head(self) -> None:
        found = self._buffer.find(b"\r\n\r\n", max(0, self._seen - 3))
        self._seen = len(self._buffer)
        if found >= 0:
            self._head = found + 4
            self._judge(bytes(self._buffer[: self._head]))
        elif self._seen > LARGEST_HEAD:
            self._head = self._end = self._seen

    def _judge(self, head: bytes) -> None:
        self.expects = bool(_EXPECTS.search(head))
        if _CHUNKED.search(head):
            self._chunk = len(head)
            return
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        self._end = len(head) + (0 if size > self._largest else size)

    def _find_last_chunk(self) -> None:
        """Each chunk is its size, a line end, its bytes, a line end; after one of size 0 come trailers."""
        while self._chunk is not None and self._chunk < len(self._buffer):
            size = _SIZE.match(self._buffer, self._chunk)
            if size is None:
                if len(self._buffer) - self._chunk > _LONGEST_SIZE or b"\n" in self._buffer[self._chunk :]:
                    self._end = len(self._buffer)  # malformed
                return
            if not int(size[1], 16):
                ended = self._buffer.find(b"\r\n\r\n", size.end() - 2)
                self._end = ended + 4 if ended >= 0 else None
                break
            self._chunk = size.end() + int(size[1], 16) + 2
        if self._end is None and len(self._buffer) > LARGEST_HEAD + self._largest:
            self._end = len(self._buffer)
