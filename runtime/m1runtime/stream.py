"""Replies as they grow, for threads and for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from m1runtime.errors import SessionError
from m1runtime.executor import Executor
from m1runtime.generation import Chunk, Completion, Generation
from m1runtime.requests import Reply
from m1runtime.scheduler import Scheduler
from m1runtime.sequence import SequenceState

AHEAD = 32
"""Tokens that a reply may be ahead of its reader: few enough that taking them back costs no forward pass."""


class Stream(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one reply, by `for` or by `async for`; afterwards `completion` holds it.

    It begins with the first chunk asked for. Closing it early leaves the session where the last chunk ended that was
    taken.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        generation: Generation,
        *,
        ended: Callable[[SequenceState], None],
        priority: int = 0,
        owner: object = None,
    ) -> None:
        """`ended`: called once nothing more is computed for it. `owner`: kept alive as long as the stream is."""
        self._scheduler, self._generation, self._owner = scheduler, generation, owner
        self.reply = Reply(executor, generation, ended=ended, ahead=AHEAD, priority=priority)
        self._over = False

    @property
    def finished(self) -> bool:
        """Whether the reply has ended and all of it was taken, or it was closed."""
        return self._over

    @property
    def taken(self) -> int:
        """How many tokens of the session the reader knows: the prompt's and those of the chunks taken."""
        return self._generation.prompt + self.reply.taken

    @property
    def completion(self) -> Completion:
        """The finished reply. Raises SessionError while chunks are still to come."""
        if not self._over:
            raise SessionError("the reply is not finished; iterate to its end or close() it first")
        return self._generation.completion()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self._over:
            raise StopIteration
        self._begin()
        try:
            chunk = self.reply.mailbox.get()
        except BaseException:
            self.close()
            raise
        return self._took(chunk)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        await self.wait()
        return next(self)

    async def wait(self) -> None:
        """Returns once the next chunk can be taken without waiting."""
        if not self._over:
            self._begin()
            await self.reply.mailbox.wait()

    def close(self) -> None:
        """Ends the reply here, after a forward pass at most; its finish reason is then "cancelled"."""
        if self._over:
            return
        self._over = True
        if not self.reply.submitted:
            self._generation.cancel()
            return
        self._scheduler.withdraw(self.reply)
        self.reply.take_back()

    async def aclose(self) -> None:
        """As `close`, without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __del__(self) -> None:
        if self.reply.submitted and not self._over:
            self._scheduler.cancel(self.reply)

    def _begin(self) -> None:
        if not self.reply.submitted:
            self._scheduler.submit([self.reply])

    def _took(self, chunk: Chunk) -> Chunk:
        paused = self.reply.paused
        self.reply.taken += len(chunk.ids)
        self._over = chunk.completion is not None
        if paused:
            self._scheduler.resume()
        return chunk
