"""Print figures side by side, with their ratio."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def beside(what: str, ours: float, theirs: float, unit: str, against: str, scale: float = 1.0) -> None:
    """Print one line: our figure, theirs, the difference and the ratio."""
    a, b = ours * scale, theirs * scale
    ratio = f"{a / b:6.2f}x" if b else "      -"
    print(
        f"  {what:<28} {a:>9.2f} {unit:<3} | {against:<26} {b:>9.2f} {unit:<3} | {a - b:>+9.2f} {unit:<3} {ratio}",
        flush=True,
    )
