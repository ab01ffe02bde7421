"""Tables of plain text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Columns as wide as their widest cell; no spaces at the ends of lines."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def shortened(text: str, width: int) -> str:
    """The text, or its beginning with three dots, in at most `width` characters."""
    if len(text) <= width:
        return text
    return text[: width - 3] + "..."
