"""The decode step of one sequence as code that torch.compile writes.

A product of one row reads every weight once; BLAS gives such products a fraction of the memory's speed on some
processors, and each small operation costs a call. Here a layer is one call of vectorised code: its norms, products,
state and experts. Layers of a kind share the code, so what is compiled does not grow with the depth. Softmax's own
sums run between two such calls, since the cache's length differs from step to step.

Everything a compiled function is given has the shape, strides and type it was compiled for, by the signature it is kept
under. So its code is called itself, without the guards and wrappers that cost as much as the code of a small layer, and
nothing is ever compiled again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m1kernels.attention import paged_attention
from m1kernels.quant import parts
from m1kernels.rotary import Rotation
from m1runtime import equations
from m1runtime.cache import PagePool, StatePool
from m1runtime.config import ModelConfig
from m1runtime.equations import Constants, Mixture
from m1runtime.errors import ConfigError
from m1runtime.layers import Batch, Experts, LightningAttention, SoftmaxAttention
from m1runtime.ring import ROWS

if TYPE_CHECKING:
    from m1runtime.model import Layer

Said = Callable[[str], None]
_Function = Callable[..., Any]

_compile: Any = torch.compile  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_OPTIONS: dict[str, Any] = {
    "size_asserts": False,
    "assert_indirect_indexing": False,  # the experts' numbers are those of their largest logits
    # Both: a row is finished before a product reads it once for each of its outputs.
    "deterministic": True,
    "realize_reads_threshold": 1,
}


@dataclass(frozen=True, slots=True)
class _Lightning:
    function: _Function


@dataclass(frozen=True, slots=True)
class _Softmax:
    before: _Function
    after: _Function


class _Code:
    """An equation's code: takes some of the arguments' tensors, in an order of its own."""

    def __init__(self, equation: _Function, example: tuple[Any, ...]) -> None:
        """Compiles; the example's tensors are written over. Raises whatever torch's compiler does."""
        self._code: _Function | None = None
        self._taken: Sequence[Tensor] = ()
        self._made: Sequence[Tensor] = ()
        compiled = _compile(equation, backend=self._backend, fullgraph=True, dynamic=False, isolate_recompiles=True)
        found = compiled(*example)
        tensors = list(_tensors(example))
        self._places = [_place(tensor, tensors) for tensor in self._taken]
        if [_place(made, self._made) for made in _tensors((found,))] != list(range(len(self._made))):
            raise ValueError("the compiled code returns something else than its equation")
        self._taken = self._made = ()

    def of(self, *weights: Any) -> _Function:
        """The code as a function of the arguments before the weights, which are tensors; it returns all that the
        equation does in a list."""
        code, own = self._code, list(_tensors(weights))
        assert code is not None
        places = self._places

        def call(*given: Tensor) -> Any:
            tensors = [*given, *own]
            return code(*[tensors[place] for place in places])

        return call

    def _backend(self, graph: Any, example: Sequence[Any]) -> _Function:
        from torch._inductor.compile_fx import compile_fx

        code: _Function = compile_fx(graph, example, config_patches=dict(_OPTIONS))  # pyright: ignore[reportUnknownVariableType, reportAssignmentType]
        self._code = code

        def first(*taken: Tensor) -> Any:
            made = code(*taken)
            self._taken, self._made = taken, made
            return made

        return first


class CompiledStep:
    """The pass of one token of one sequence, compiled while this is made.

    Raises ConfigError for a model it does not cover, and where no C++ compiler works; the message has the remedy.
    """

    def __init__(
        self, config: ModelConfig, embed: Tensor, layers: Sequence[Layer], last: tuple[Tensor, Tensor, Tensor | None]
    ) -> None:
        """`last`: the last norm [H], the head [V, H] and the tokens that are never chosen [V], if any."""
        check(embed.device, embed.dtype)
        self._config, self._embed, self._last = config, embed, last
        self._compiled: dict[tuple[Any, ...], _Code] = {}
        self._eps = config.rms_norm_eps
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler meets torch's own
            try:
                self._layers = [self._layer(layer) for layer in layers]
                row = embed.new_zeros(config.hidden_size)
                self._head = self._function(equations.head, (self._eps,), (row,), last)
            except ConfigError:
                raise
            except Exception as error:  # torch's own differ from release to release
                raise ConfigError(
                    f"the decode step cannot be compiled here: {_reason(error)}; leave compile=True out, or "
                    "install a working C++ compiler (g++ or clang) and Python's headers"
                ) from error

    def __call__(self, batch: Batch, states: StatePool, pages: PagePool) -> Tensor:
        """Logits [1, V] fp32; the pools are left as the packed pass leaves them."""
        c = self._config
        slot, row, place = int(batch.slots), int(batch.ring_rows) % ROWS, int(batch.kv_rows)
        own, ring = states.states[:, slot].unbind(0), states.ring.kv[:, slot, row].unbind(0)
        turn: Rotation | None = None
        h = self._embed[int(batch.ids)]
        lightning = softmax = 0
        for layer in self._layers:
            if isinstance(layer, _Lightning):
                (h,) = layer.function(h, own[lightning], ring[lightning])
                lightning += 1
                continue
            turn = turn or Rotation.at(batch.positions, c.rotary_dim, c.rope_theta)
            kv = pages.kv[softmax]
            skip, q, new = layer.before(h, turn.cos[0], turn.sin[0])
            kv.flatten(1, 2)[:, place].copy_(new)
            o = paged_attention(q[None], kv[0], kv[1], batch.page_tables, batch.bounds, batch.lengths)
            (h,) = layer.after(skip, o.view(-1))
            softmax += 1
        states.ring.hidden[slot, row].copy_(h)
        return self._head(h)[0]

    def _layer(self, layer: Layer) -> _Lightning | _Softmax:
        c, attention = self._config, layer.attention
        constants = Constants.of(c, layer.alpha, layer.beta)
        mixture = (layer.post_norm, _mixture(layer.experts))
        h = self._embed.new_zeros(c.hidden_size)
        if isinstance(attention, LightningAttention):
            weights = (layer.input_norm, *_lightning_weights(attention), *mixture)
            state = h.new_zeros(c.num_attention_heads, c.head_dim, c.head_dim)
            ring = h.new_zeros(c.num_attention_heads, 2, c.head_dim)
            return _Lightning(self._function(equations.lightning, (constants,), (h, state, ring), weights))
        assert isinstance(attention, SoftmaxAttention)
        angles = h.new_zeros(2, 1, c.rotary_dim // 2)
        weights = (layer.input_norm, parts(attention.qkv))
        out = (parts(attention.out), *mixture)
        o = h.new_zeros(c.num_attention_heads * c.head_dim)
        return _Softmax(
            self._function(equations.before_attention, (constants,), (h, *angles), weights),
            self._function(equations.after_attention, (constants,), (h, o), out),
        )

    def _function(
        self, equation: _Function, constants: tuple[Any, ...], given: tuple[Tensor, ...], weights: tuple[Any, ...]
    ) -> _Function:
        """An equation compiled for arguments like those given, which it is tried on, and for such weights as these."""
        key = (equation, constants, _signature((*given, *weights)))
        if key not in self._compiled:

            def bound(*arguments: Any) -> Any:
                return equation(*constants, *arguments)

            self._compiled[key] = _Code(bound, (*given, *weights))
        return self._compiled[key].of(*weights)


def told(make: Callable[[], CompiledStep], say: Said) -> CompiledStep:
    """What `make` makes, with a line before and after."""
    say("compiling the decode step (seconds to a minute the first time, then kept on disk) ...")
    began = time.monotonic()
    made = make()
    say(f"compiled in {time.monotonic() - began:.1f} s")
    return made


def check(device: torch.device, dtype: torch.dtype, ranks: int = 1) -> None:
    """Raises ConfigError, with the remedy, where no step can be compiled."""
    if ranks > 1:
        raise ConfigError("compile=True is for a model in one process; leave it out, or tensor_parallel")
    if device.type != "cpu" or dtype != torch.float32:
        kind = f"{dtype}".removeprefix("torch.")
        raise ConfigError(
            f"compile=True covers float32 on a CPU, not {kind} on {device.type}; "
            "leave it out, or give device='cpu', dtype='float32'"
        )
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ConfigError(
            "compile=True needs a C++ compiler, and none works here: install one (apt install g++), name it in the "
            "environment variable CXX, or leave compile=True out"
        ) from error


def _lightning_weights(attention: LightningAttention) -> tuple[Any, ...]:
    return parts(attention.qkv), parts(attention.gate), parts(attention.out), attention.norm, attention.fading


def _mixture(experts: Experts) -> Mixture:
    shared = None if experts.shared is None else (parts(experts.shared[0]), parts(experts.shared[1]))
    return experts.gate, parts(experts.w13), parts(experts.w2), experts.coefficient, shared


def _signature(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.dtype, x.shape, x.stride()
    return tuple(_signature(part) for part in x) if isinstance(x, tuple) else x  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _tensors(x: tuple[Any, ...]) -> Iterator[Tensor]:
    """Those in nested tuples, in order."""
    for part in x:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from _tensors(part)  # pyright: ignore[reportUnknownArgumentType]


def _place(tensor: Tensor, among: Sequence[Tensor]) -> int:
    """Where a tensor itself is. Raises ValueError where it is not."""
    for place, other in enumerate(among):
        if other is tensor:
            return place
    raise ValueError("the compiled code takes something else than its equation")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
