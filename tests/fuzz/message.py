"""An HTTP message as bytes: header lines, an empty line, the body.

People can read and write such a corpus.
"""

from __future__ import annotations


def read_message(data: bytes) -> tuple[dict[str, str], bytes]:
    """Return the headers as WSGI gives them (each byte a character), and the body."""
    head, _, body = data.partition(b"\n\n")
    lines = (line.partition(":") for line in head.decode("latin-1").split("\n"))
    return {name: value.strip(" ") for name, _, value in lines}, body
