"""Figures of a benchmark: shares with their intervals, and tables of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

Z = 1.959963984540054
"""Two-sided, 95 %."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson (1927): it stays within 0 and 1, and is honest about few trials.

    Raises ValueError where nothing was tried.
    """
    if not 0 <= right <= total or total < 1:
        raise ValueError(f"a share needs 0 <= right <= total and a total of at least 1, not {right} of {total}")
    share, square = right / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z * sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    # At the ends rounding would leave 1e-17 of what is exactly 0.
    return (0.0 if right == 0 else middle - half), (1.0 if right == total else middle + half)


def shares(right: int, total: int) -> tuple[str, str]:
    """A share and its interval, in per cent, as a table shows them."""
    low, high = wilson(right, total)
    return f"{right / total:.1%}".replace("%", " %"), f"{100 * low:.1f} - {100 * high:.1f} %"


def mean(numbers: Iterable[float]) -> float:
    """The arithmetic mean, 0 of nothing."""
    seen = list(numbers)
    return sum(seen) / len(seen) if seen else 0.0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines: list[str] = []
    for row in (head, *rows):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in _cells(row, widths)
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    return enumerate(zip(row, widths, strict=True))
