"""Images that the code hands over, read with distrust."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from m1agent.messages import ImagePart

PNG = b"\x89PNG\r\n\x1a\n"
IMAGES = 8
BYTES = 4 << 20


def read_images(file: IO[bytes]) -> Iterator[ImagePart]:
    """The PNG images in a file of length-prefixed pieces: at most `IMAGES`, none above `BYTES`, up to the first piece
    that is none."""
    file.seek(0)
    for _ in range(IMAGES):
        size = int.from_bytes(file.read(8), "big")
        if not len(PNG) < size <= BYTES:
            return
        data = file.read(size)
        if len(data) < size or not data.startswith(PNG):
            return
        yield ImagePart(data, "image/png")
