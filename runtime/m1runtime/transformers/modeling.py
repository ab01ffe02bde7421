"""The hybrid as a transformers model: plain modules under the hub's names, autograd throughout.

The equations are those of `m1runtime.model`, over rows that may be padded anywhere: a padding token is no token.
"""

# pyright: basic
# transformers is typed in part only.
from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import can_return_tuple

from m1runtime.transformers.cache import MiniMaxM1Cache
from m1runtime.transformers.configuration import (
    MiniMaxM1Config,
    MiniMaxM1NamedConfig,
    MiniMaxNativeConfig,
    MiniMaxText01Config,
)
from m1runtime.transformers.layers import M1DecoderLayer, M1RMSNorm, Router


class M1PreTrainedModel(PreTrainedModel):
    """What the models here have in common."""

    config: MiniMaxM1Config
    config_class = MiniMaxM1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["M1DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"norm", "block_sparse_moe.gate", "coefficient", "lm_head"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"\.(slope_rate|query_decay|key_decay|diagonal_decay|rotary_emb\.inv_freq)$"
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


class MiniMaxM1Model(M1PreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: MiniMaxM1Config) -> None:
        super().__init__(config)
        c = config.decided()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(M1DecoderLayer(c, layer) for layer in range(c.num_hidden_layers))
        self.norm = M1RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MiniMaxM1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """attention_mask [B, past + T], 0 where there is padding, on any side; what follows a cache may leave it out.

        Raises ValueError for a cache of another class, a mask of another shape, or output_attentions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions is not supported: lightning layers have no attention weights")
        h = inputs_embeds if inputs_embeds is not None else self.embed_tokens(input_ids)
        cache = self._cache(past_key_values, self.config.use_cache if use_cache is None else use_cache)
        past, length = (cache.length if cache is not None else 0), h.shape[1]
        real = _real(attention_mask, cache, past, h)
        positions = _positions(position_ids, real, past, h)
        new = real[:, past:] if real is not None else None
        mask = _mask(real, past, h)
        hidden, scores = [h], list[Tensor]()
        scored = self.config.output_router_logits if output_router_logits is None else output_router_logits
        for layer in self.layers:
            h, score = layer(h, real=new, positions=positions, mask=mask, past_key_values=cache, scored=bool(scored))
            scores += [score] if score is not None else []
            hidden += [h] if output_hidden_states else []
        h = self.norm(h)
        if cache is not None:
            cache.extend(length, real)
        return MoeModelOutputWithPast(
            last_hidden_state=h,
            past_key_values=cache,
            hidden_states=(*hidden[:-1], h) if output_hidden_states else None,
            router_logits=cast("Any", tuple(scores) or None),
        )

    def _cache(self, given: Any, use_cache: bool) -> MiniMaxM1Cache | None:
        if given is not None and not isinstance(given, MiniMaxM1Cache):
            raise ValueError(
                f"past_key_values must be a MiniMaxM1Cache(model.config), not {type(given).__name__}: "
                "no other cache holds the states of lightning layers"
            )
        if self.gradient_checkpointing and self.training:
            return None
        return given if given is not None or not use_cache else MiniMaxM1Cache(self.config)


class MiniMaxM1ForCausalLM(M1PreTrainedModel, GenerationMixin):
    """MiniMax-M1 with its head. Logits are fp32, and -inf for tokens whose rows were never trained."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MiniMaxM1Config) -> None:
        super().__init__(config)
        self.model = MiniMaxM1Model(config)
        self.vocab_size = self.model.embed_tokens.num_embeddings
        self.lm_head = nn.Linear(self.model.embed_tokens.embedding_dim, self.vocab_size, bias=False)
        self._unused: Tensor | None = None
        self.post_init()

    def train(self, mode: bool = True) -> MiniMaxM1ForCausalLM:
        """As every module; which rows are trained is then looked at anew."""
        self._unused = None
        return super().train(mode)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MiniMaxM1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits [B, T, V] fp32, those of `logits_to_keep` positions at the end (0: all), and the loss where there are
        labels [B, T] (-100: none)."""
        scored = self.config.output_router_logits if output_router_logits is None else output_router_logits
        loss_arguments = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        kwargs.pop("return_dict", None)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=scored,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        h = out.last_hidden_state[:, kept]
        logits = F.linear(h.float(), self.lm_head.weight.float())
        loss: Any = None
        aux: Any = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.vocab_size, **loss_arguments)
            if scored and out.router_logits is not None:
                experts, top_k = self.config.num_local_experts, self.config.num_experts_per_tok or 1
                aux = load_balancing_loss_func(out.router_logits, experts, top_k, attention_mask)
                loss = loss + self.config.router_aux_loss_coef * aux.to(loss.device)
        elif not self.training:
            logits = logits.masked_fill(self._untrained(), float("-inf"))
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            router_logits=out.router_logits,
        )

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        cast("Any", GenerationMixin)._prepare_cache_for_generation(
            self, generation_config, model_kwargs, *args, **kwargs
        )
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            cache = model_kwargs["past_key_values"] = MiniMaxM1Cache(self.config)
            if generation_config.is_assistant:
                cache.activate_past_recording()

    def _untrained(self) -> Tensor:
        """Tokens whose embedding or head row is all zero [V] bool: their logit 0 would beat negative ones."""
        if self._unused is None:
            embed, head = self.model.embed_tokens.weight.detach(), self.lm_head.weight.detach()
            self._unused = (embed == 0).all(dim=1) | (head == 0).all(dim=1)
        return self._unused


class MiniMaxM1NamedModel(MiniMaxM1Model):
    """The model of `MiniMaxM1NamedConfig`."""

    config_class = MiniMaxM1NamedConfig


class MiniMaxM1NamedForCausalLM(MiniMaxM1ForCausalLM):
    """The model of `MiniMaxM1NamedConfig`, with its head."""

    config_class = MiniMaxM1NamedConfig


class MiniMaxText01Model(MiniMaxM1Model):
    """MiniMax-Text-01, which is the same network."""

    config_class = MiniMaxText01Config


class MiniMaxText01ForCausalLM(MiniMaxM1ForCausalLM):
    """MiniMax-Text-01, with its head."""

    config_class = MiniMaxText01Config


class MiniMaxNativeModel(MiniMaxM1Model):
    """Checkpoints in transformers' own dialect of the same network, rotated as they were trained."""

    config_class = MiniMaxNativeConfig


class MiniMaxNativeForCausalLM(MiniMaxM1ForCausalLM):
    """The same, with its head."""

    config_class = MiniMaxNativeConfig


def _real(attention_mask: Tensor | None, cache: MiniMaxM1Cache | None, past: int, h: Tensor) -> Tensor | None:
    """Which of all tokens [B, past + T] are no padding; None where all are."""
    batch, length = h.shape[:2]
    before = cache.real if cache is not None else None
    if attention_mask is None:
        if before is None:
            return None
        return torch.cat([before, before.new_ones(batch, length)], 1)
    if attention_mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask must be [batch, tokens so far and new ones] = {[batch, past + length]}, "
            f"got {list(attention_mask.shape)}"
        )
    real = attention_mask.to(h.device) != 0
    return real if not bool(real.all()) else None


def _positions(given: Tensor | None, real: Tensor | None, past: int, h: Tensor) -> Tensor:
    batch, length = h.shape[:2]
    if given is not None:
        return given.expand(batch, length)
    if real is not None:
        return (real.cumsum(1) - 1).clamp(min=0)[:, past:]
    return torch.arange(past, past + length, device=h.device).expand(batch, length)


def _mask(real: Tensor | None, past: int, h: Tensor) -> Tensor | None:
    """[B or 1, 1, T, S] bool; None where plain causal attention is meant. A padding token sees itself, so that no row
    is empty."""
    length = h.shape[1]
    if real is None and (past == 0 or length == 1):
        return None
    seen = torch.arange(past + length, device=h.device)
    queries = seen[past:, None]
    causal = seen <= queries
    if real is None:
        return causal[None, None]
    return (causal & real[:, None, :] | (seen == queries))[:, None]
