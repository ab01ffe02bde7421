"""Tensor operations of MiniMax-M1, each a plain reference and, where it pays, a Triton kernel."""

from m1kernels.attention import paged_attention
from m1kernels.lightning import LightningOutput, decay_slopes, lightning_decode, lightning_prefill
from m1kernels.moe import grouped_experts, route
from m1kernels.norm import rms_norm, rms_norm_gate
from m1kernels.rotary import apply_rotary
from m1kernels.sample import apply_mask, apply_repetition_penalty, sample

__all__ = [
    "LightningOutput",
    "apply_mask",
    "apply_repetition_penalty",
    "apply_rotary",
    "decay_slopes",
    "grouped_experts",
    "lightning_decode",
    "lightning_prefill",
    "paged_attention",
    "rms_norm",
    "rms_norm_gate",
    "route",
    "sample",
]
