"""Continuous batching: one thread owns the model, and every forward pass takes all requests a step further.

Replies that are being generated take part in every pass with a token and its draft; prompts fill the rest of the pass
in chunks, the shortest first, and nobody is left out for more than `STALE` passes.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import weakref
from collections.abc import Iterable, Sequence

from m1runtime.errors import ClosedError
from m1runtime.executor import Executor, Progress
from m1runtime.requests import Prefill, Request
from m1runtime.spans import Span

SHORT = 64
"""Pending tokens up to which a request counts as decoding: its tokens don't wait for a place among the prompts'."""

NAME = "m1runtime engine"
STALE = 16

PATIENCE = 16
"""Passes that a request without caches waits after one found no room, lest they push each other out all the time."""


class Scheduler:
    """Requests of any number of threads and event loops, one engine thread.

    batch: requests that run at a time. mixed: tokens of prompts a pass while replies are being generated: more make
    prompts faster and the replies beside them slower.
    """

    def __init__(self, executor: Executor, *, batch: int = 256, mixed: int = 512) -> None:
        self._executor = executor
        self._batch, self._mixed = batch, mixed
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._running: dict[Request, None] = {}  # in the order of admission
        self._arrivals = itertools.count()
        self._passes = 0
        self._full = 0  # passes until those without caches are tried again
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        weakref.finalize(self, self._work.set)
        _SCHEDULERS.add(self)

    def submit(self, requests: Iterable[Request]) -> None:
        """Puts requests in the queue. Raises ClosedError once the engine is closed."""
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed")
            for request in requests:
                request.order, request.submitted = next(self._arrivals), True
                self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_drive, args=(weakref.ref(self), self._work), name=NAME, daemon=True
                )
                self._thread.start()
        self._work.set()

    def cancel(self, *requests: Request) -> None:
        """Takes requests out; each is `detached` soon, after a forward pass at most."""
        for request in requests:
            request.cancelled = True
        self._work.set()

    def withdraw(self, *requests: Request) -> None:
        """Cancels requests that were submitted, and returns once all are detached."""
        self.cancel(*requests)
        for request in requests:
            request.detached.wait()

    def run(self, request: Prefill, progress: Progress | None = None) -> None:
        """Computes what is pending of a sequence; `progress` follows it."""
        self.submit([request])
        try:
            done, total = 0, 1
            while done < total:
                done, total = request.mailbox.get()
                if progress is not None:
                    progress(done, total)
        finally:
            self.withdraw(request)

    async def arun(self, request: Prefill) -> None:
        """As `run`, without blocking the event loop; a cancellation leaves the rest of it pending."""
        self.submit([request])
        try:
            done, total = 0, 1
            while done < total:
                await request.mailbox.wait()
                done, total = request.mailbox.get()
        finally:
            self.cancel(request)

    def resume(self) -> None:
        """Says that a paused caller has taken something."""
        self._work.set()

    def close(self) -> None:
        """Ends the thread; requests under way fail with ClosedError."""
        with self._lock:
            self._closed = True
        self._work.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def step(self) -> bool:
        """One forward pass; False when there is nothing to do. The engine thread alone calls this.

        Raises ClosedError when the thread is to end.
        """
        self._take_arrivals()
        if self._closed:
            raise ClosedError("the engine is closed")
        ready = self._placed()
        self._step([request for request in ready if not request.sequence.pending])
        self._pass([request for request in ready if request in self._running and request.sequence.pending])
        return bool(ready)

    def stop(self, error: BaseException) -> None:
        """Every request fails. The engine thread alone calls this."""
        with self._lock:
            everyone = [*self._running, *self._waiting]
            self._waiting = []
        for request in everyone:
            self._fail(request, error)

    def _take_arrivals(self) -> None:
        for request in [request for request in self._running if request.cancelled]:
            self._fail(request, ClosedError("the reply was closed"))
        with self._lock:
            gone = [request for request in self._waiting if request.cancelled]
            left = sorted((r for r in self._waiting if not r.cancelled), key=lambda r: (-r.priority, r.order))
            free = max(0, self._batch - len(self._running))
            admitted, self._waiting = left[:free], left[free:]
        for request in gone:
            self._fail(request, ClosedError("the reply was closed"))
        for request in admitted:
            try:
                request.begin()
            except BaseException as error:
                self._fail(request, error)
            else:
                request.served = self._passes
                self._running[request] = None

    def _placed(self) -> list[Request]:
        """Those that can go on: they have a slot, or get one now."""
        ready = sorted((r for r in self._running if not r.paused), key=_seniority)
        there = [request for request in ready if request.sequence.slot >= 0]
        self._full = max(0, self._full - 1)
        asked = there if self._full and there else ready
        placed = set(self._executor.ready([request.sequence for request in asked]))
        if asked and not placed:
            self._fail(asked[0], self._executor.full(asked[0].sequence))
        return [request for request in asked if request.sequence in placed]

    def _room(self, request: Request, tokens: int, planned: Iterable[Request]) -> bool:
        """Room for a request's next tokens, at the expense of those that came later: they wait until there is some."""
        running = [other.sequence for other in self._running]
        while not self._executor.find_room(request.sequence, tokens, running):
            self._full = PATIENCE
            last = self._last(request, planned)
            if last is None:
                return False
            self._executor.preempt(last.sequence)
        return True

    def _last(self, request: Request, planned: Iterable[Request]) -> Request | None:
        """Whose caches go first: a paused caller's, else those of the last that came after `request`."""
        others = [r for r in self._running if r is not request and r.sequence.slot >= 0 and r not in planned]
        later = [r for r in others if r.paused] or [r for r in others if _seniority(r) > _seniority(request)]
        return max(later, key=_seniority, default=None)

    def _pass(self, requests: Sequence[Request]) -> None:
        planned = self._plan(requests)
        if not planned:
            # One whose caches were taken a moment ago is to wait for its turn instead.
            if stuck := [request for request in requests if request.sequence.slot >= 0]:
                first = min(stuck, key=_seniority)
                self._fail(first, self._executor.full(first.sequence))
            return
        self._passes += 1
        for request, _ in planned:
            request.served = self._passes
        try:
            self._executor.compute([span for _, span in planned])
        except BaseException as error:
            if len(planned) == 1:
                self._fail(planned[0][0], error)
            else:
                # Whoever made it fail must not take the others down.
                for request, _ in planned:
                    self._pass([request])
            return
        ended = [request for request, span in planned if span.ends]
        for request in ended:
            request.prepare()
        self._look_ahead(ended)
        for request, _ in planned:
            request.passed()
        self._step(ended)

    def _look_ahead(self, requests: Iterable[Request]) -> None:
        """Uses the time in which an accelerator computes: what a grammar is asked for the first time costs most."""
        pieces = itertools.chain.from_iterable(request.look_ahead() for request in requests)
        while self._executor.running and next(pieces, pieces) is None:
            pass

    def _plan(self, requests: Sequence[Request]) -> list[tuple[Request, Span]]:
        decoding = any(request.sequence.pending <= SHORT for request in requests)
        room, prompts = self._executor.chunk, self._mixed if decoding else self._executor.chunk
        planned: list[tuple[Request, Span]] = []
        for request in sorted(requests, key=self._turn):
            sequence = request.sequence
            if sequence.slot < 0:
                continue  # It had to make room for another.
            long = sequence.pending > SHORT
            count = min(sequence.pending, room, prompts if long else room)
            if not count:
                continue
            draft = request.draft() if count == sequence.pending else None
            if draft is not None and count + len(draft.tokens) > room:
                draft = None
            span = Span(sequence, sequence.computed, sequence.computed + count, draft)
            if not self._room(request, span.end - span.start, [other for other, _ in planned]):
                continue
            room -= len(span.tokens)
            prompts -= count if long else 0
            planned.append((request, span))
        return planned

    def _turn(self, request: Request) -> tuple[bool, int, int, int]:
        fresh = self._passes - request.served < STALE
        return fresh, -request.priority, request.sequence.pending, request.order

    def _step(self, requests: Iterable[Request]) -> None:
        for request in requests:
            try:
                over = request.step()
            except BaseException as error:
                self._fail(request, error)
            else:
                if over:
                    self._detach(request)

    def _fail(self, request: Request, error: BaseException) -> None:
        self._detach(request)
        request.fail(error)

    def _detach(self, request: Request) -> None:
        self._running.pop(request, None)
        try:
            request.end()
        finally:
            request.detached.set()


def _seniority(request: Request) -> tuple[int, int]:
    return -request.priority, request.order


_SCHEDULERS: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for scheduler in list(_SCHEDULERS):
        scheduler.close()
    for thread in threading.enumerate():
        if thread.name == NAME:  # Of an engine that was dropped a moment ago: ended in the middle, it would abort.
            thread.join(timeout=10)


def _drive(owner: weakref.ref[Scheduler], work: threading.Event) -> None:
    while (scheduler := owner()) is not None:
        work.clear()
        try:
            busy = scheduler.step()
        except BaseException as error:
            scheduler.stop(error)
            if isinstance(error, ClosedError):
                return
            busy = True
        del scheduler
        if not busy:
            work.wait()
