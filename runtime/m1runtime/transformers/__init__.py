"""MiniMax-M1 and Text-01 for transformers, without remote code.

    from m1runtime.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained("MiniMaxAI/MiniMax-M1-40k", dtype="bfloat16", device_map="auto")

What is loaded so generates as the runtime does, pads on either side, keeps a cache over turns, and can be trained.
"""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

import sys

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from m1runtime.transformers.cache import MiniMaxM1Cache
from m1runtime.transformers.configuration import (
    MiniMaxM1Config,
    MiniMaxM1NamedConfig,
    MiniMaxNativeConfig,
    MiniMaxText01Config,
)
from m1runtime.transformers.modeling import (
    MiniMaxM1ForCausalLM,
    MiniMaxM1Model,
    MiniMaxM1NamedForCausalLM,
    MiniMaxM1NamedModel,
    MiniMaxNativeForCausalLM,
    MiniMaxNativeModel,
    MiniMaxText01ForCausalLM,
    MiniMaxText01Model,
)

__all__ = ["MiniMaxM1Cache", "MiniMaxM1Config", "MiniMaxM1ForCausalLM", "MiniMaxM1Model", "register"]

CLASSES = (
    (MiniMaxM1Config, MiniMaxM1Model, MiniMaxM1ForCausalLM),
    (MiniMaxM1NamedConfig, MiniMaxM1NamedModel, MiniMaxM1NamedForCausalLM),
    (MiniMaxText01Config, MiniMaxText01Model, MiniMaxText01ForCausalLM),
)
NATIVE = (MiniMaxNativeConfig, MiniMaxNativeModel, MiniMaxNativeForCausalLM)


def register(*, native: bool = False) -> None:
    """Lets `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` load checkpoints of M1 and Text-01 with these classes.

    `native`: those in transformers' own dialect too (`model_type` "minimax"), instead of with transformers' classes,
    which rotate all of a head's dimensions where the checkpoints have half of them rotated. Calling it again is fine.
    """
    for config, model, with_head in (*CLASSES, NATIVE) if native else CLASSES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, with_head, exist_ok=True)
        # `transformers serve` looks for classes in the package, which replaces its own module while it is imported.
        setattr(sys.modules["transformers"], with_head.__name__, with_head)
