"""Summarises the progress of a push: one line every few seconds, instead of several per layer."""

from __future__ import annotations

PERIOD = 5.0
"""Seconds between two lines."""


class Layers:
    """The layers of one image in the daemon's reports."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._done: set[str] = set()
        self._said_at: float | None = None

    def take(self, layer: str, now: float, *, sent: int = 0, done: bool = False) -> str | None:
        """One report on a layer with `sent` bytes pushed. Returns a line if one is due. `now` is in seconds."""
        self._sent[layer] = max(sent, self._sent.get(layer, 0))
        self._done |= {layer} if done else set()
        due = self._said_at is None or now - self._said_at >= PERIOD
        if not due or not (self._done or any(self._sent.values())):
            return None
        self._said_at = now
        return f"pushing layers: {len(self._done)} of {len(self._sent)} done{self._megabytes()}"

    def summary(self) -> str | None:
        """The last line, after the push; `None` if the image has no layer."""
        return f"pushed layers: {len(self._sent)}{self._megabytes()}" if self._sent else None

    def _megabytes(self) -> str:
        sent = sum(self._sent.values())
        return f", {sent / 1e6:.1f} MB sent" if sent else ""
