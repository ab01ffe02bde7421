"""The public face: a checkpoint folder in, completions, streams and sessions out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from m1runtime import compiled, quantize
from m1runtime.checkpoint import load
from m1runtime.cold import ColdDtype, ColdTier
from m1runtime.config import ModelConfig
from m1runtime.devices import as_device, as_dtype
from m1runtime.errors import ConfigError, SessionError, TokenizerError
from m1runtime.executor import Executor, Progress
from m1runtime.generation import Chunk, Completion, Generation
from m1runtime.memory import MemoryPlan, Wish, available_bytes, plan_memory
from m1runtime.model import Model
from m1runtime.parallel import Spec, lead
from m1runtime.requests import Reply, alast, last
from m1runtime.rules import Rules
from m1runtime.sampling import SamplingParams
from m1runtime.scheduler import Scheduler
from m1runtime.sequence import SequenceState
from m1runtime.session import Session
from m1runtime.session_file import load_sequence
from m1runtime.stats import EngineStats
from m1runtime.stream import Stream
from m1runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar

__all__ = ["Chunk", "Completion", "Engine", "EngineStats", "Stream"]

log = logging.getLogger(__name__)
BUNDLED = {"m1-nano": Path(__file__).parent / "nano"}
Prompt = Sequence[int] | str
COLD_BYTES = 16 * 2**30


class Engine:
    """A loaded model. Several threads may use one engine, each with sessions of its own."""

    def __init__(
        self,
        config: ModelConfig,
        model: Model,
        tokenizer: Tokenizer | None = None,
        *,
        page_size: int = 64,
        prefill_chunk: int = 4096,
        mixed_chunk: int = 512,
        batch: int = 256,
        snapshots: int = 8,
        cache_memory: int | None = None,
        cold: str | Path | None = None,
        cold_bytes: int = COLD_BYTES,
        cold_dtype: ColdDtype = "float32",
    ) -> None:
        """`prefill_chunk`: tokens a forward pass at most; `mixed_chunk`: those of prompts while replies are generated.

        `batch`: requests that run at a time. `snapshots`: turn ends a session holds, besides commits.
        cache_memory: bytes that sessions and the prefix tree may take; None is no bound. `cold`: as in from_pretrained.
        """
        self.config = config
        self.tokenizer = tokenizer
        self._snapshots = snapshots
        self._executor = Executor(
            model,
            device=model.embed.device,
            dtype=model.embed.dtype,
            page_size=page_size,
            chunk=prefill_chunk,
            cache_memory=cache_memory,
        )
        model.adopt(self._executor.states, self._executor.pages)
        if cold is not None:
            self._executor.store.cold = ColdTier(
                Path(cold), model=model.fingerprint, limit=cold_bytes, dtype=cold_dtype
            )
        self._scheduler = Scheduler(self._executor, batch=batch, mixed=mixed_chunk)
        self._rules = Rules.of(config, tokenizer, model.embed.device)

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        tensor_parallel: int = 1,
        threads: int | None = None,
        compile: bool = False,
        progress: bool | None = None,
        memory_limit: int | None = None,
        prefill_chunk: int = 4096,
        mixed_chunk: int = 512,
        batch: int = 256,
        snapshots: int = 8,
        cache_memory: int | None = None,
        cold: str | Path | None = None,
        cold_bytes: int = COLD_BYTES,
        cold_dtype: ColdDtype = "float32",
    ) -> Engine:
        """Loads a checkpoint folder, or a bundled model by name ("m1-nano").

        device: CUDA when there is one. dtype: of the large matrices; float32 on a CPU, bfloat16 on CUDA unless given.
        quantization: int8, int4, int8-experts or int4-experts: what the large matrices are kept in (`quantize.py`).
        tensor_parallel: ranks that compute the model together, a process and device each. This is rank 0 and starts
        the others; under torchrun all call this, and all but rank 0 serve here until it closes its engine.
        threads: of a forward pass on a CPU, that alone; None chooses (`threads.py`).
        compile: the step that decodes one sequence is compiled while loading (`compiled.py`): seconds to a minute the
        first time, and little after that. Its results are the same; where it cannot be compiled, ConfigError says so.
        progress: print the memory plan and a bar; None does so on a terminal, for models that are not bundled.
        cache_memory: bytes that sessions and the prefix tree may take; None is a share of what the weights leave.
        cold: a folder for what the prefix tree gives up and `save_cache()` writes; the next engine finds it there. It
        takes cold_bytes at most. cold_dtype: "int8" stores states in a quarter; what goes on from them is not exact.
        memory_limit: bytes, instead of what the machine says. A folder without tokenizer.json serves token ids.
        Raises ConfigError, CheckpointError, TokenizerError, ParallelError, and MemoryPlanError before reading a weight.
        """
        folder = _resolve(path_or_name)
        config = ModelConfig.from_file(folder)
        device = as_device(device)
        dtype = as_dtype(dtype, device)
        if compile:
            compiled.check(device, dtype, tensor_parallel)
        has_text = (folder / "tokenizer.json").exists()
        tokenizer = Tokenizer.from_file(folder, eos_ids=config.eos_token_ids) if has_text else None
        context = min(4096, config.max_position_embeddings)
        wish = Wish(dtype, context=context, quantization=quantization, devices=tensor_parallel, chunk=prefill_chunk)
        shown = False if progress is None and folder in BUNDLED.values() else progress
        plan = _checked_plan(config, wish, device, memory_limit, shown)
        if tensor_parallel > 1:
            spec = Spec(
                str(folder), tensor_parallel, device.type, str(dtype).removeprefix("torch."), quantization, threads
            )
            model: Model = lead(spec, progress=shown)
        else:
            scheme = quantize.quantization(quantization)
            weights = load(
                folder,
                config,
                dtype=dtype,
                device=device,
                quantization=scheme,
                progress=shown,
                output_major=compile,
            )
            model = Model(config, weights, threads=threads)
            if compile:
                model.compile(partial(_say, progress))
        if cache_memory is None:
            cache_memory = plan.cache_memory
        return cls(
            config,
            model,
            tokenizer,
            prefill_chunk=prefill_chunk,
            mixed_chunk=mixed_chunk,
            batch=batch,
            snapshots=snapshots,
            cache_memory=cache_memory,
            cold=cold,
            cold_bytes=cold_bytes,
            cold_dtype=cold_dtype,
        )

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self._rules.eos_ids

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of config and weights: what saved sessions are tied to."""
        return self._executor.model.fingerprint

    def score(self, ids: Sequence[int]) -> Tensor:
        """fp32 logits [len(ids), V] after every token, computed afresh. Raises SessionError for bad ids."""
        return self._executor.score(self._check_ids(ids))

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        priority: int = 0,
    ) -> list[Completion]:
        """A completion for each prompt (token ids or text); all go through the model together, each as if alone."""
        replies = self._replies(prompts, params or SamplingParams(), grammar, priority)
        self._scheduler.submit(replies)
        try:
            return [last(reply) for reply in replies]
        finally:
            self._scheduler.withdraw(*replies)

    async def agenerate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        priority: int = 0,
    ) -> list[Completion]:
        """As `generate`, without blocking the event loop; a cancellation ends all of them."""
        replies = self._replies(prompts, params or SamplingParams(), grammar, priority)
        self._scheduler.submit(replies)
        try:
            return [await alast(reply) for reply in replies]
        finally:
            self._scheduler.cancel(*replies)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        priority: int = 0,
    ) -> Stream:
        """One reply as it grows, for `for` or `async for`; its last chunk carries the completion."""
        generation = self._generation(self._check_ids(self._ids(prompt)), params or SamplingParams(), grammar)
        session = Session(self._executor, self._scheduler, self._rules, generation.sequence)
        return Stream(self._scheduler, self._executor, generation, ended=_nothing, priority=priority, owner=session)

    def session(self, ids: Prompt = (), *, progress: Progress | None = None) -> Session:
        """A session over `ids`, computed right away."""
        return self._session(ids, keep=self._snapshots, progress=progress)

    def load_session(self, path: str | Path) -> Session:
        """A session saved by `Session.save`. Raises SessionFileError when it is damaged or of another model."""
        sequence = load_sequence(self._executor, Path(path), keep=self._snapshots)
        return Session(self._executor, self._scheduler, self._rules, sequence)

    def stats(self) -> EngineStats:
        """Totals so far."""
        return EngineStats.of(self._executor)

    def save_cache(self) -> None:
        """Writes every boundary of the prefix tree to the cold tier. Raises SessionError when there is none."""
        if self._executor.store.cold is None:
            raise SessionError("save_cache() needs a cold tier: Engine.from_pretrained(..., cold=<folder>)")
        self._executor.freeze()

    def clear_cache(self) -> None:
        """Drops every boundary of the prefix tree; live sessions keep what they have computed, and no rewind points."""
        self._executor.clear()

    def close(self) -> None:
        """Ends what is under way (its callers get ClosedError), the engine's thread, and other ranks. Twice is fine."""
        self._scheduler.close()
        self._executor.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise TokenizerError("a text prompt needs a tokenizer, and this checkpoint has none; pass token ids")
        return self.tokenizer.encode(prompt)

    def _session(self, prompt: Prompt, *, keep: int, progress: Progress | None = None) -> Session:
        sequence = self._executor.admit(keep=keep)
        session = Session(self._executor, self._scheduler, self._rules, sequence)
        session.append(self._ids(prompt), progress=progress)
        return session

    def _replies(
        self, prompts: Sequence[Prompt], params: SamplingParams, grammar: Grammar | None, priority: int
    ) -> list[Reply]:
        if isinstance(prompts, str):
            raise SessionError("prompts must be a list of prompts; wrap a single one: [prompt]")
        checked = [self._check_ids(self._ids(prompt)) for prompt in prompts]
        for budget in {self._rules.budget(len(ids), params) for ids in checked}:
            self._rules.constrain(grammar, budget)  # What it raises concerns all of them.
        return [
            Reply(
                self._executor,
                partial(self._generation, ids, params, grammar),
                ended=self._executor.release,
                whole=True,
                priority=priority,
            )
            for ids in checked
        ]

    def _generation(self, ids: list[int], params: SamplingParams, grammar: Grammar | None) -> Generation:
        sequence = self._executor.admit(keep=0)
        try:
            sequence.tokens = ids
            return Generation(sequence, params, self._rules, grammar)
        except BaseException:
            self._executor.release(sequence)
            raise

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        checked = self._rules.check(ids)
        if not checked:
            raise SessionError("a prompt needs at least one token")
        return checked


def _checked_plan(
    config: ModelConfig, wish: Wish, device: torch.device, limit: int | None, progress: bool | None
) -> MemoryPlan:
    """The plan, told to whoever watches. Raises MemoryPlanError when it does not fit."""
    available = available_bytes(device) if limit is None else limit
    if device.type == "cpu":
        available //= wish.devices  # its ranks share it
    plan = plan_memory(config, wish, device=str(device), available=available)
    _say(progress, str(plan))
    plan.check()
    return plan


def _say(progress: bool | None, text: str) -> None:
    log.info("%s", text)
    if progress or (progress is None and sys.stderr.isatty()):
        print(text, file=sys.stderr)


def _nothing(_: SequenceState) -> None:
    pass


def _resolve(path_or_name: str | Path) -> Path:
    folder = BUNDLED.get(str(path_or_name), Path(path_or_name))
    if not folder.is_dir():
        raise ConfigError(
            f"{path_or_name}: no such checkpoint folder; give a folder with config.json and model.safetensors, "
            f"or a bundled model: {', '.join(BUNDLED)}"
        )
    return folder
