"""The hybrid itself: packed tokens in, fp32 logits at the wanted rows out.

    h = embed[ids]
    for each layer:
        n = rms(h);  h = alpha * (n if postnorm else h) + beta * attention(n)
        n = rms(h);  h = alpha * (n if postnorm else h) + beta * experts(n)
    logits = head · rms(h)

(MiniMax-01, arXiv 2501.08313; alpha and beta are DeepNorm's, arXiv 2203.00555.)
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from m1kernels.norm import rms_norm
from m1kernels.quant import Weight, linear, parts, plain
from m1kernels.rotary import Rotation
from m1runtime.cache import PagePool, StatePool
from m1runtime.compiled import CompiledStep, Said, told
from m1runtime.config import LIGHTNING, ModelConfig
from m1runtime.errors import ConfigError
from m1runtime.few import FewTokens
from m1runtime.layers import Batch, Experts, LightningAttention, SoftmaxAttention
from m1runtime.layout import EMBED, HEAD, NORM, parameters
from m1runtime.ranks import ALONE, Ranks
from m1runtime.shards import share
from m1runtime.single import OneToken
from m1runtime.threads import choose, limited

STATE, KV = 1, 3
"""Where heads are in states [layers, A, D, D], and in keys and values [layers, 2, length, K, D]."""


@dataclass(frozen=True, slots=True)
class Output:
    """logits: [rows, V] fp32; exported: [P, lightning layers, A, D, D] fp32, states after the batch's export tokens."""

    logits: Tensor
    exported: Tensor | None


class Layer:
    """One attention of either kind and one set of experts, each behind its norm and residual."""

    def __init__(self, config: ModelConfig, index: int, weights: Mapping[str, Weight], ranks: Ranks) -> None:
        base = f"model.layers.{index}"
        self.lightning = config.attn_types[index] == LIGHTNING
        self.attention = (
            LightningAttention(config, index, weights, f"{base}.self_attn", ranks)
            if self.lightning
            else SoftmaxAttention(config, weights, f"{base}.self_attn", ranks)
        )
        self.experts = Experts(config, weights, base, ranks)
        self.input_norm = plain(weights[f"{base}.input_layernorm.weight"])
        self.post_norm = plain(weights[f"{base}.post_attention_layernorm.weight"])
        self.alpha = config.lightning_alpha if self.lightning else config.softmax_alpha
        self.beta = config.lightning_beta if self.lightning else config.softmax_beta


@contextmanager
def _uncollected() -> Generator[None]:
    """No garbage is collected: sessions that are would release their slots while torch traces, and fail."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


class Model:
    """Weights and the forward pass; what sequences remember lives in the pools it is given.

    threads: of a pass on a CPU (`threads.py`). Raises ConfigError when it is less than 1. Of several ranks this is
    one's share: `weights` are the rank's own, and every rank must call alike.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        *,
        threads: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, found {threads}; None chooses")
        self.whole_config = config
        self.config = share(config, ranks.size)
        self.ranks = ranks
        self.embed = plain(weights[EMBED])
        self.norm = plain(weights[NORM])
        self.head = self.embed.float() if config.tie_word_embeddings else plain(weights[HEAD])
        self.layers = [Layer(self.config, index, weights, ranks) for index in range(config.num_hidden_layers)]
        unused = self._all_tokens(unused_rows(self.embed, self.head).to(torch.uint8)).bool()
        self.unused = unused if bool(unused.any()) else None
        alone = ranks.size == 1 and OneToken.fits(self.config, self.embed)
        self._one = OneToken(self.config, self.embed, self.layers) if alone else None
        self._few = FewTokens(self.config, self.embed, self.layers) if alone else None
        self._compiled: CompiledStep | None = None
        self._weights = dict(weights)
        self.threads = (choose(self._matrix_bytes) if threads is None else threads) if self.embed.is_cpu else None

    def compile(self, say: Said) -> None:
        """Has the pass of one token of one sequence compiled; `say` is told when that begins and ends.

        Raises ConfigError where that cannot be, with the remedy.
        """
        last = (self.norm, self.head, self.unused)
        with limited(self.threads), _uncollected():
            self._compiled = told(lambda: CompiledStep(self.config, self.embed, self.layers, last), say)

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(part.nbytes for weight in self._weights.values() for part in parts(weight))

    @property
    def _matrix_bytes(self) -> int:
        """Of the largest matrix in a layer: what a thread's share of one operation is measured by."""
        matrices = [parts(weight)[0] for name, weight in self._weights.items() if name not in (EMBED, HEAD)]
        return max(matrix[(0,) * (matrix.dim() - 2)].nbytes for matrix in matrices)

    @cached_property
    def slopes(self) -> Tensor:
        """Decay exponents of the lightning layers, [layers, A] fp32."""
        found = [layer.attention.slopes for layer in self.layers if isinstance(layer.attention, LightningAttention)]
        return torch.stack(found) if found else torch.zeros(0, self.config.num_attention_heads)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the config, the dtypes and the first row of every weight, hex: what a saved session belongs to."""
        digest = hashlib.sha256(self.whole_config.digest().encode())
        own, whole = parameters(self.config), parameters(self.whole_config)
        for name, weight in sorted(self._weights.items()):
            for tensor in parts(weight):
                row = tensor[(0,) * (tensor.dim() - 1)].float()
                row = row if own[name].shape[-1] == whole[name].shape[-1] else self.ranks.join(row)
                row = row.cpu().contiguous()
                digest.update(f"{name} {tensor.dtype}".encode() + row.numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def forward(self, batch: Batch, states: StatePool, pages: PagePool) -> Output:
        """Runs the batch and advances the pools in place; every length, split and batch gives the same numbers."""
        with limited(self.threads):
            return self._forward(batch, states, pages)

    def _forward(self, batch: Batch, states: StatePool, pages: PagePool) -> Output:
        if self._compiled is not None and batch.decode and len(batch.slots) == 1 and batch.rows is None:
            return Output(self._compiled(batch, states, pages), None)
        if self._one is not None and batch.decode and len(batch.slots) == 1 and batch.rows is None:
            return Output(self.logits(self._one(batch, states, pages)), None)
        if self._few is not None and self._few.takes(batch):
            h = self._few(batch, states, pages)
            return Output(self.logits(h if batch.rows is None else h[batch.rows]), None)
        c = self.config
        h = self._embedded(batch.ids)
        exported: list[Tensor] = []
        turn = Rotation.at(batch.positions, c.rotary_dim, c.rope_theta)
        lightning = softmax = 0
        for layer in self.layers:
            n = rms_norm(h, layer.input_norm, c.rms_norm_eps)
            if isinstance(layer.attention, LightningAttention):
                a, out = layer.attention(n, batch, states.states[lightning], states.ring.kv[lightning])
                lightning += 1
                if out is not None and batch.export:
                    exported.append(out)
            else:
                a = layer.attention(n, batch, turn, pages.kv[softmax])
                softmax += 1
            h = residual(n if c.postnorm else h, a, layer.alpha, layer.beta)
            n = rms_norm(h, layer.post_norm, c.rms_norm_eps)
            h = residual(n if c.postnorm else h, layer.experts(n), c.mlp_alpha, c.mlp_beta)
        batch.remember(states.ring.hidden, h)
        h = h if batch.rows is None else h[batch.rows]
        return Output(self.logits(h), torch.stack(exported, dim=1) if exported else None)

    def logits(self, h: Tensor) -> Tensor:
        """h [rows, H] → [rows, V] fp32; tokens without a trained row are -inf."""
        logits = self._all_tokens(linear(rms_norm(h.float(), self.norm, self.config.rms_norm_eps), self.head))
        return logits if self.unused is None else logits.masked_fill(self.unused, float("-inf"))

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """A state (dim STATE) or keys and values (dim KV) with the heads of all ranks."""
        return x

    def share(self, x: Tensor, dim: int) -> Tensor:
        """The inverse of `whole`: each rank takes its own heads."""
        return x

    def adopt(self, states: StatePool, pages: PagePool) -> None:
        """Takes the pools that passes will be given."""

    def close(self) -> None:
        """Ends the other ranks, where there are any."""

    def _embedded(self, ids: Tensor) -> Tensor:
        if self.ranks.size == 1:
            return self.embed[ids]
        own = ids - self.ranks.rank * len(self.embed)
        others = (own < 0) | (own >= len(self.embed))
        return self.ranks.sum(self.embed[own.masked_fill(others, 0)].masked_fill(others[:, None], 0))

    def _all_tokens(self, x: Tensor) -> Tensor:
        """[..., V] of every rank's tokens [..., V/size]; the last ranks' may be padded."""
        return self.ranks.join(x)[..., : self.whole_config.vocab_size]


def residual(skip: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * skip + beta * branch."""
    return torch.add(branch if beta == 1 else branch * beta, skip, alpha=alpha)


def unused_rows(embed: Tensor, head: Tensor) -> Tensor:
    """Tokens whose embedding or head row is all zero, [V] bool: their logit 0 would beat negative ones."""
    return (embed == 0).all(dim=1) | (head == 0).all(dim=1)
