"""What a model of this architecture remembers between forward passes, as transformers' caches go."""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin

from m1kernels.lightning import lightning_prefill
from m1runtime.config import LIGHTNING
from m1runtime.transformers.configuration import MiniMaxM1Config

WINDOW = 64
"""Tokens that can be taken back at any time while the past is recorded."""


class Recording:
    """The last tokens that went into a state [B, A, D, D], and the state before them."""

    def __init__(self, state: Tensor) -> None:
        self.before = state
        self.k = self.v = state.new_zeros(state.shape[0], 0, *state.shape[1:3])  # [B, T, A, D]
        self.real: Tensor | None = None  # [B, T] bool; None: no padding among them

    def add(self, k: Tensor, v: Tensor, real: Tensor | None, slopes: Tensor) -> None:
        """Take in T more tokens; of more than twice the window the oldest become part of the state before."""
        if real is not None or self.real is not None:
            old = self.real if self.real is not None else k.new_ones(k.shape[0], self.k.shape[1], dtype=torch.bool)
            new = real if real is not None else k.new_ones(k.shape[:2], dtype=torch.bool)
            self.real = torch.cat([old, new], 1)
        self.k, self.v = torch.cat([self.k, k], 1), torch.cat([self.v, v], 1)
        if self.k.shape[1] > 2 * WINDOW:
            old = self.k.shape[1] - WINDOW
            self.before = self._after(old, slopes)
            self.k, self.v = self.k[:, old:], self.v[:, old:]
            self.real = self.real[:, old:] if self.real is not None else None

    def take_back(self, tokens: int, slopes: Tensor) -> Tensor:
        """The state without the last `tokens`, which are forgotten."""
        kept = self.k.shape[1] - tokens
        state = self._after(kept, slopes)
        self.k, self.v = self.k[:, :kept], self.v[:, :kept]
        self.real = self.real[:, :kept] if self.real is not None else None
        return state

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        self.before, self.k, self.v = self.before[rows], self.k[rows], self.v[rows]
        self.real = self.real[rows] if self.real is not None else None

    def _after(self, tokens: int, slopes: Tensor) -> Tensor:
        real = self.real[:, :tokens] if self.real is not None else None
        return run(self.k[:, :tokens], self.k[:, :tokens], self.v[:, :tokens], slopes, self.before, real)[1]


def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lightning attention of a batch with padding: q, k, v [B, T, A, D], state [B, A, D, D] → output [B, T, A, D] and
    state.

    Tokens that are not `real` [B, T] are no tokens: nothing decays by them, wherever they stand. Their output is zero.
    """
    batch, length = k.shape[:2]
    if real is None:
        bounds = list(range(0, batch * length + 1, length)) if length else [0] * (batch + 1)
        done = lightning_prefill(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), slopes, bounds, state)
        return done.o.view_as(k), done.state
    rows = real.flatten().nonzero().flatten()
    ends = real.sum(1).cumsum(0)
    bounds = [0, *(int(end) for end in ends.tolist())]
    q, k, v = (x.flatten(0, 1)[rows] for x in (q, k, v))
    done = lightning_prefill(q, k, v, slopes, bounds, state)
    o = k.new_zeros(batch * length, *k.shape[1:]).index_copy(0, rows, done.o)
    return o.view(batch, length, *k.shape[1:]), done.state


class LightningStates(LinearAttentionCacheLayerMixin):
    """One lightning layer's state [B, A, D, D] fp32."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.recording: Recording | None = None
        self.slopes: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, state: Tensor, real: Tensor | None, slopes: Tensor) -> None:
        """The state after T more tokens k, v [B, T, A, D]."""
        self.slopes = slopes
        if self.record_past:
            if self.recording is None:
                self.recording = Recording(self.state if self.state is not None else torch.zeros_like(state))
            self.recording.add(k.detach(), v.detach(), real, slopes)
        self.state = state

    def activate_past_recording(self) -> None:
        """From the next token on, remember what is needed to take tokens back."""
        self.record_past = True

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    @property
    def held(self) -> int:
        """How many tokens can be taken back."""
        return self.recording.k.shape[1] if self.recording is not None else 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove and self.recording is not None and self.slopes is not None:
            self.state = self.recording.take_back(abs(tokens_to_remove), self.slopes)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        if self.state is not None:
            self.state = self.state[rows.to(self.state.device)]
        if self.recording is not None:
            self.recording.select(rows.to(self.recording.k.device))

    def reset(self) -> None:
        self.state = self.recording = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        if self.state is not None:
            rows = torch.arange(len(self.state), device=self.state.device)
            self.select(rows.repeat_interleave(repeats))

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the first state is its own beginning."""

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("lightning layers have no convolution")

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """The state, replaced."""
        self.state = recurrent_states
        return recurrent_states


class MiniMaxM1Cache(Cache):
    """States of the lightning layers, keys and values of the softmax layers, and which of the tokens were padding.

    `crop(-n)` takes back the last n tokens: any number up to the last `WINDOW`, once `activate_past_recording()` was
    called; without lightning layers always. Raises RuntimeError where it cannot.
    """

    def __init__(self, config: MiniMaxM1Config) -> None:
        kinds = config.decided().attn_types
        super().__init__(layers=[LightningStates() if kind == LIGHTNING else DynamicLayer() for kind in kinds])
        self.length = 0
        self.real: Tensor | None = None  # [B, length] bool; None: no padding

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, padding included; of every layer."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0

    def extend(self, tokens: int, real: Tensor | None) -> None:
        """All layers have taken in so many tokens; `real` [B, length + tokens] tells padding from tokens."""
        self.length += tokens
        self.real = real

    def crop(self, tokens_to_remove: int) -> None:
        count = abs(tokens_to_remove)
        if tokens_to_remove > 0:
            raise ValueError("crop takes minus the number of tokens to take back, as transformers 5 does")
        held = min((layer.held for layer in self.layers if isinstance(layer, LightningStates)), default=self.length)
        if count > min(held, self.length):
            raise RuntimeError(
                f"{count} tokens cannot be taken back: the states of lightning layers are known for the last {held}. "
                f"Call activate_past_recording() before the forward pass; then any of the last {WINDOW} can"
            )
        super().crop(tokens_to_remove)
        self.length -= count
        self.real = self.real[:, : self.length] if self.real is not None else None

    def reset(self) -> None:
        super().reset()
        self.length, self.real = 0, None

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.real = self.real[beam_idx.to(self.real.device)] if self.real is not None else None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.real = self.real[indices] if self.real is not None else None

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.real = self.real.repeat_interleave(repeats, dim=0) if self.real is not None else None
