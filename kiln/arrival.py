"""Find the end of a request in its bytes as they arrive (RFC 9112, §6), so that no thread waits for the rest.

In doubt a request counts as complete: gunicorn's parser reports malformed or oversized requests.
"""

from __future__ import annotations

import re

LARGEST_HEAD = 1 << 20
"""Bytes; the parser refuses a larger head or trailer section."""
KEPT = 1 << 16
"""Bytes that are kept after reading, because each removal has a cost."""
LONGEST_LINE = 8190
"""Bytes of a chunk's extensions: gunicorn applies its limit of a header field."""

_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_EXPECTS = re.compile(rb"\nexpect[ \t]*:[ \t]*100-continue", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9a-fA-F]{1,12})[^\r\n]{0,%d}\r\n" % LONGEST_LINE)


class Arrival:
    """The bytes of a connection, one request after the other. Bodies above `largest` bytes are not awaited further."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._buffer = bytearray()
        self.closed = False
        self._begin()

    def _begin(self) -> None:
        self._read = self._seen = 0
        self._head: int | None = None
        self._chunk: int | None = None
        self._trailing = False
        self._end: int | None = None
        self.expects = False

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def whole(self) -> bool:
        """Whether no more bytes are awaited; the application refuses a truncated body."""
        ready = self._end is not None and len(self._buffer) >= self._end
        return ready or (self.closed and self._head is not None)

    def feed(self, data: bytes) -> None:
        """Add bytes; empty bytes mean that the client has closed its side."""
        self.closed = not data
        self._buffer += data
        self._look()

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes of the current request; none if no more have arrived."""
        until = len(self._buffer) if self._end is None else min(self._end, len(self._buffer))
        with memoryview(self._buffer) as view:
            data = bytes(view[self._read : min(self._read + size, until)])
        self._read += len(data)
        if self._read > KEPT:
            self._forget_what_was_read()
        return data

    def _forget_what_was_read(self) -> None:
        """Free the read bytes, so that a large body is not in memory twice."""
        del self._buffer[: self._read]
        self._end = None if self._end is None else self._end - self._read
        self._read = 0

    def next(self) -> bool:
        """Continue with the next request. Return whether the current one was read to its end.

        If not, the parser and this class disagree about the start of the next one, which must then not be read.
        """
        exact = self._end is not None and self._read == self._end
        del self._buffer[: self._read if self._end is None else self._end]
        self._begin()
        self._look()
        return exact

    def drop(self) -> None:
        """Discard all bytes unread."""
        self._buffer.clear()
        self._begin()

    def _look(self) -> None:
        if self._head is None:
            self._find_head()
        if self._chunk is not None and self._end is None:
            self._find_last_chunk()
        if self._trailing and self._end is None:
            self._find_end_of_trailers()

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
        """Find the last chunk. Each chunk is its size, a line end, its bytes, a line end; trailers follow one of size
        0.
        """
        while self._chunk is not None and self._chunk < len(self._buffer):
            size = _SIZE.match(self._buffer, self._chunk)
            if size is None:
                if self._malformed(self._chunk):
                    self._end = len(self._buffer)
                return
            if not int(size[1], 16):
                self._trailing, self._seen = True, size.end() + 1  # the preceding line end may begin the empty line
                return
            self._chunk = size.end() + int(size[1], 16) + 2
        if len(self._buffer) > LARGEST_HEAD + self._largest:
            self._end = len(self._buffer)

    def _malformed(self, line: int) -> bool:
        """Return whether the line there, complete or too long, does not begin with a size."""
        limit = line + LONGEST_LINE + 16
        return self._buffer.find(b"\n", line, limit) >= 0 or len(self._buffer) > limit

    def _find_end_of_trailers(self) -> None:
        found = self._buffer.find(b"\r\n\r\n", max(0, self._seen - 3))
        self._seen = max(self._seen, len(self._buffer))
        if found >= 0:
            self._end = found + 4
        elif self._seen - (self._chunk or 0) > LARGEST_HEAD:
            self._end = len(self._buffer)
