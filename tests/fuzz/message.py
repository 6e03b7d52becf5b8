"""An HTTP message as bytes: header lines, an empty line, the body. So a corpus can be read and written by hand."""

from __future__ import annotations


def read_message(data: bytes) -> tuple[dict[str, str], bytes]:
    """Headers as WSGI gives them (each byte a character), and the body."""
    head, _, body = data.partition(b"\n\n")
    lines = (line.partition(":") for line in head.decode("latin-1").split("\n"))
    return {name: value.strip(" ") for name, _, value in lines}, body
