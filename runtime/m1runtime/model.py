"""The hybrid itself: packed tokens in, fp32 logits at the wanted rows out.

    h = embed[ids]
    for each layer:
        n = rms(h);  h = alpha * (n if postnorm else h) + beta * attention(n)
        n = rms(h);  h = alpha * (n if postnorm else h) + beta * experts(n)
    logits = head · rms(h)

(MiniMax-01, arXiv 2501.08313; alpha and beta are DeepNorm's, arXiv 2203.00555.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from m1kernels.norm import rms_norm
from m1kernels.quant import Weight, linear, parts, plain
from m1kernels.rotary import Rotation
from m1runtime.cache import PagePool, StatePool
from m1runtime.config import LIGHTNING, ModelConfig
from m1runtime.errors import ConfigError
from m1runtime.layers import Batch, Experts, LightningAttention, SoftmaxAttention
from m1runtime.layout import EMBED, HEAD, NORM
from m1runtime.threads import choose, limited


@dataclass(frozen=True, slots=True)
class Output:
    """logits: [rows, V] fp32; exported: [P, lightning layers, A, D, D] fp32, states after the batch's export tokens."""

    logits: Tensor
    exported: Tensor | None


class Layer:
    """One attention of either kind and one set of experts, each behind its norm and residual."""

    def __init__(self, config: ModelConfig, index: int, weights: Mapping[str, Weight]) -> None:
        base = f"model.layers.{index}"
        self.lightning = config.attn_types[index] == LIGHTNING
        self.attention = (
            LightningAttention(config, index, weights, f"{base}.self_attn")
            if self.lightning
            else SoftmaxAttention(config, weights, f"{base}.self_attn")
        )
        self.experts = Experts(config, weights, base)
        self.input_norm = plain(weights[f"{base}.input_layernorm.weight"])
        self.post_norm = plain(weights[f"{base}.post_attention_layernorm.weight"])
        self.alpha = config.lightning_alpha if self.lightning else config.softmax_alpha
        self.beta = config.lightning_beta if self.lightning else config.softmax_beta


class Model:
    """Weights and the forward pass; what sequences remember lives in the pools it is given.

    threads: of a pass on a CPU (`threads.py`). Raises ConfigError when it is less than 1.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight], *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, found {threads}; None chooses")
        self.config = config
        self.embed = plain(weights[EMBED])
        self.norm = plain(weights[NORM])
        self.head = self.embed.float() if config.tie_word_embeddings else plain(weights[HEAD])
        self.layers = [Layer(config, index, weights) for index in range(config.num_hidden_layers)]
        self.unused = unused_rows(self.embed, self.head)
        self._weights = dict(weights)
        self.threads = (choose(self._matrix_bytes) if threads is None else threads) if self.embed.is_cpu else None

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
        digest = hashlib.sha256(self.config.digest().encode())
        for name, weight in sorted(self._weights.items()):
            for tensor in parts(weight):
                row = tensor[(0,) * (tensor.dim() - 1)].float().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype}".encode() + row.numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def forward(self, batch: Batch, states: StatePool, pages: PagePool) -> Output:
        """Runs the batch and advances the pools in place; every length, split and batch gives the same numbers."""
        with limited(self.threads):
            return self._forward(batch, states, pages)

    def _forward(self, batch: Batch, states: StatePool, pages: PagePool) -> Output:
        c = self.config
        h = self.embed[batch.ids]
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
        logits = linear(rms_norm(h.float(), self.norm, self.config.rms_norm_eps), self.head)
        return logits if self.unused is None else logits.masked_fill(self.unused, float("-inf"))


def residual(skip: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * skip + beta * branch."""
    return torch.add(branch if beta == 1 else branch * beta, skip, alpha=alpha)


def unused_rows(embed: Tensor, head: Tensor) -> Tensor | None:
    """Tokens whose embedding or head row is all zero, [V] bool: their logit 0 would beat negative ones. None: none."""
    unused = (embed == 0).all(dim=1) | (head == 0).all(dim=1)
    return unused if bool(unused.any()) else None
