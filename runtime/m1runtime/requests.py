"""What callers wait for: tokens of a session to be computed, or a reply to be generated."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeAlias

from m1runtime.executor import Executor
from m1runtime.generation import Chunk, Completion, Generation
from m1runtime.mailbox import Mailbox
from m1runtime.sequence import Draft, SequenceState

Done: TypeAlias = tuple[int, int]
"""Tokens computed so far, and in all."""


class Request(ABC):
    """One caller's work on one sequence. The scheduler's thread alone calls what is not said to be the caller's.

    `priority`: higher ones go first. `detached` is set once the scheduler has let go of the sequence.
    """

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.cancelled = False
        self.detached = threading.Event()
        self.served = 0  # the forward pass that it took part in last
        self.order = 0  # of arrival
        self.submitted = False

    @property
    @abstractmethod
    def sequence(self) -> SequenceState:
        """What is computed."""

    @property
    def paused(self) -> bool:
        """Whether the caller has enough for now."""
        return False

    def begin(self) -> None:  # noqa: B027
        """Admitted: takes what it needs."""

    def draft(self) -> Draft | None:
        """What goes along behind the pending tokens."""
        return None

    def prepare(self) -> None:  # noqa: B027
        """What can be done while a forward pass runs that computes all that is pending."""

    def look_ahead(self) -> Iterator[None]:
        """What else may be done meanwhile, piece by piece, as long as the pass runs."""
        return iter(())

    def passed(self) -> None:  # noqa: B027
        """A forward pass has computed something for it."""

    @abstractmethod
    def step(self) -> bool:
        """Nothing is pending: takes what the pass has brought. Whether the request is over."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tells the caller."""

    def end(self) -> None:  # noqa: B027
        """Over, in whatever way: gives back what it took."""


class Prefill(Request):
    """Computes what is pending of a sequence."""

    def __init__(self, sequence: SequenceState, *, priority: int = 0) -> None:
        super().__init__(priority)
        self.mailbox: Mailbox[Done] = Mailbox()
        self._sequence = sequence
        self._total = sequence.pending

    @property
    def sequence(self) -> SequenceState:
        return self._sequence

    def begin(self) -> None:
        self._sequence.busy = True

    def end(self) -> None:
        self._sequence.busy = False

    def passed(self) -> None:
        if self._sequence.pending:
            self.mailbox.put((self._total - self._sequence.pending, self._total))

    def step(self) -> bool:
        self.mailbox.put((self._total, self._total))
        return True

    def fail(self, error: BaseException) -> None:
        self.mailbox.fail(error)


class Reply(Request):
    """Generates a reply.

    generation: or what makes it, once the request is admitted. ended: called when nothing more is computed for it.
    ahead: tokens that may be generated before the caller takes them. whole: the mailbox gets the last chunk alone, and
    the caller's thread is not woken for every token.
    """

    def __init__(
        self,
        executor: Executor,
        generation: Generation | Callable[[], Generation],
        *,
        ended: Callable[[SequenceState], None],
        ahead: float = math.inf,
        whole: bool = False,
        priority: int = 0,
    ) -> None:
        super().__init__(priority)
        self.mailbox: Mailbox[Chunk] = Mailbox()
        self.generation = generation if isinstance(generation, Generation) else None
        self.taken = 0  # tokens that the caller has
        self._executor = executor
        self._given, self._ended, self._ahead, self._whole = generation, ended, ahead, whole
        self._counted = False

    @property
    def sequence(self) -> SequenceState:
        assert self.generation is not None
        return self.generation.sequence

    @property
    def paused(self) -> bool:
        assert self.generation is not None
        return len(self.generation.ids) - self.taken >= self._ahead

    def begin(self) -> None:
        if not isinstance(self._given, Generation):
            self.generation = self._given()

    def draft(self) -> Draft | None:
        assert self.generation is not None
        return self.generation.draft()

    def prepare(self) -> None:
        assert self.generation is not None
        self.generation.prepare()

    def look_ahead(self) -> Iterator[None]:
        assert self.generation is not None
        return self.generation.look_ahead()

    def step(self) -> bool:
        generation = self.generation
        assert generation is not None
        for chunk in generation.step():
            if not self._whole:
                self.mailbox.put(chunk)
        if generation.finish_reason is None:
            return False
        self.end()  # Before the caller learns of it, and uses the sequence again.
        self.mailbox.put(generation.last_chunk())
        return True

    def fail(self, error: BaseException) -> None:
        self.mailbox.fail(error)

    def end(self) -> None:
        if self.generation is None or self._counted:
            return
        self._counted = True
        self.generation.cancel()
        self.generation.account(self._executor)
        self._ended(self.sequence)

    def take_back(self) -> None:
        """The caller's, once detached: tokens that the caller never took are no part of the sequence."""
        generation = self.generation
        if generation is not None and self.taken < len(generation.ids):
            generation.truncate(self.taken)
            self._executor.rewind(self.sequence, generation.prompt + self.taken)
            self._ended(self.sequence)


def last(reply: Reply) -> Completion:
    """The completion, once it is there."""
    while (completion := reply.mailbox.get().completion) is None:
        pass
    return completion


async def alast(reply: Reply) -> Completion:
    """As `last`, without blocking the event loop."""
    completion = None
    while completion is None:
        await reply.mailbox.wait()
        completion = reply.mailbox.get().completion
    return completion
