"""Who waits for a book."""

from collections import defaultdict, deque


class Reservations:
    """First come, first served; a reader waits for a book once."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, deque[str]] = defaultdict(deque)

    def add(self, isbn: str, reader: str) -> int:
        """The place in the queue, counted from 1."""
        queue = self._waiting[isbn]
        if reader not in queue:
            queue.append(reader)
        return queue.index(reader) + 1

    def drop(self, isbn: str, reader: str) -> bool:
        """Whether the reader was waiting."""
        if reader not in self._waiting[isbn]:
            return False
        self._waiting[isbn].remove(reader)
        return True

    def next(self, isbn: str) -> str | None:
        """Take the first reader out of the queue."""
        queue = self._waiting[isbn]
        return queue.popleft() if queue else None
