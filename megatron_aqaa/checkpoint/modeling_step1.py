"""Step-1 for transformers: square-root ALiBi, grouped queries, SwiGLU, RMSNorm, no biases, no dropout.

Exported checkpoints carry a copy of this file and of `configuration_step1.py`, and load with `trust_remote_code=True`:
the two import torch and transformers alone. Tensors are named as in the released checkpoints and as vLLM reads them.

Shapes: B batch, Sq queries, Sk keys (those in the cache and the queries' own), H hidden, D width of a head, V
vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.versions import require_version

from .configuration_step1 import Step1Config

# Static caches of older versions write over their first tokens unless they are told the places.
require_version("transformers>=5.4.0", "The code of this Step-1 model needs it: pip install -U transformers")

# Outputs and arguments called `past_key_values` are `cache` from transformers 5.24 on.
_CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def sqrt_alibi_slopes(num_heads: int) -> list[float]:
    """Slopes of all heads, for any number of them.

    With n the largest power of two up to `num_heads`: `2^(−8k/n)` for k = 1…n, then `2^(−4(2j+1)/n)` for the rest,
    j = 0…: the odd slopes of twice as many heads. (stepfun-ai/Step-Audio: `modeling_step1.py`.)
    """
    n = 1 << (num_heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * k / n) for k in range(1, n + 1)]
    return first + [2.0 ** (-4.0 * (2 * j + 1) / n) for j in range(num_heads - n)]


def attention_bias(
    slopes: list[float], hidden: Tensor, past: int, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    """What is added to `q·k/√D`: `−slope · √distance`, and −inf where a query does not see a key.

    Distances are counted in true positions: tokens that `attention_mask` [B, Sk] leaves out take no place, wherever
    they stand. Such a token as a query sees everything, since a softmax over nothing is NaN; nobody reads its result.

    Args:
        slopes: of all heads.
        hidden: [B, Sq, H]; tells number, dtype and device of the queries.
        past: keys in the cache.
        attention_mask: [B, Sk], zero for padding; or [B, 1 or heads, Sq, ≥ Sk], causality included, boolean (true: is
            seen) or to be added; or None.
        position_ids: [B or 1, Sq], read only where there is neither a mask nor a past: a place where they do not go on
            by one begins a sequence of its own, as elsewhere in transformers.

    Returns:
        [B or 1, heads, Sq, Sk] in fp32 or wider.

    Raises:
        ValueError: a mask of another shape.
    """
    queries = slice(past, past + hidden.shape[1])
    positions, mask = _positions_and_mask(hidden, queries, attention_mask, position_ids)
    distance = (positions[:, queries, None] - positions[:, None, :]).clamp_min(0)[:, None]
    slope = torch.tensor(slopes, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    bias = -slope[:, None, None] * distance.to(slope.dtype).sqrt()
    if mask.dtype != torch.bool:
        return (bias + mask).clamp_min(torch.finfo(hidden.dtype).min)  # finite after rounding too: no row of −inf alone
    return bias.masked_fill(~(mask | ~mask.any(-1, keepdim=True)), -torch.inf)


def _positions_and_mask(
    hidden: Tensor, queries: slice, attention_mask: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[B or 1, Sk] places of the keys, and [B or 1, 1 or heads, Sq, Sk] what is visible, or to be added."""
    if attention_mask is not None:
        attention_mask = attention_mask.to(hidden.device)
        if attention_mask.ndim == 4:
            return torch.arange(attention_mask.shape[-1], device=hidden.device)[None], attention_mask
        if attention_mask.shape != (hidden.shape[0], queries.stop):
            raise ValueError(
                f"attention_mask is {list(attention_mask.shape)}, but must be {[hidden.shape[0], queries.stop]}: one "
                f"row a sequence, over the {queries.start} tokens in the cache and the {hidden.shape[1]} given ones"
            )
    slots = torch.arange(queries.stop, device=hidden.device)[None]
    visible = (slots[:, None, :] <= slots[:, queries, None])[:, None]
    if attention_mask is not None:
        kept = attention_mask != 0
        return kept.cumsum(-1) - 1, visible & kept[:, None, None, :]
    if position_ids is not None and queries.start == 0:
        begins = nn.functional.pad(position_ids.to(hidden.device).diff() != 1, (1, 0))
        sequence = begins.cumsum(-1)
        visible = visible & (sequence[:, None, :] == sequence[:, :, None])[:, None]
    return slots, visible


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """The definition, with the scores in fp32 or wider; the only form that returns weights.

    Args:
        module: not used; transformers calls all forms alike.
        query: [B, heads, Sq, D].
        key: [B, groups, Sk, D].
        value: [B, groups, Sk, D].
        bias: [B or 1, heads, Sq, Sk] in fp32 or wider.
        scaling: factor on `q·k`.

    Returns:
        Attended values [B, Sq, heads, D] and weights [B, heads, Sq, Sk].
    """
    by_group = (key.shape[1], -1)
    q, k = query.unflatten(1, by_group).to(bias.dtype), key[:, :, None].to(bias.dtype)
    weights = (q @ k.mT * scaling + bias.unflatten(1, by_group)).softmax(-1).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2).transpose(1, 2), weights.flatten(1, 2)


class Step1RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight`, computed in fp32 (fp64 for fp64) and rounded once."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., H], same dtype."""
        x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * self.weight).to(hidden.dtype)


class Step1MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Step1Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, Sq, H] to [B, Sq, H]."""
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Step1Attention(nn.Module):
    """Grouped-query attention; the bias says who sees whom, and from how far."""

    def __init__(self, config: Step1Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_attention_groups  # sdpa's name for it
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_attention_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_attention_groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, bias: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        """[B, Sq, H] to [B, Sq, H], and the weights [B, heads, Sq, Sk] where the implementation has them."""
        by_head = (*hidden.shape[:2], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(by_head).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            # A static cache returns its whole capacity, of which the bias may cover what is filled.
            key, value = key[:, :, : bias.shape[-1]], value[:, :, : bias.shape[-1]]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(self, query, key, value, bias, dropout=0.0, scaling=self.scaling)
        return self.o_proj(attended.flatten(2)), weights


class Step1DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and SwiGLU on a residual stream."""

    def __init__(self, config: Step1Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Step1Attention(config, layer_idx)
        self.mlp = Step1MLP(config)
        self.input_layernorm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, bias: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        """As `Step1Attention.forward`."""
        attended, weights = self.self_attn(self.input_layernorm(hidden), bias, cache)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), weights


class Step1PreTrainedModel(PreTrainedModel):
    """What transformers asks about the family. No module has buffers: nothing is left to fill after loading on meta."""

    config_class = Step1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Step1DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True


class Step1Model(Step1PreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        self.slopes = sqrt_alibi_slopes(config.num_attention_heads)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Step1DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, Sq, H] of `input_ids` [B, Sq] or `inputs_embeds` [B, Sq, H].

        The bias takes B · heads · Sq · Sk numbers, for all layers together: give `generate` a `prefill_chunk_size` for
        long prompts. `past_key_values` and `cache` are one thing under its older and its newer name; for the masks and
        `position_ids` see `attention_bias`.

        Raises:
            ValueError: neither ids nor embeddings or both; weights asked of an implementation that has none; a cache
                together with gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        kind = self.config._attn_implementation
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_attentions and kind != "eager":
            raise ValueError(f'attention weights exist with attn_implementation="eager", not with "{kind}"')
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache_to_fill(past_key_values if cache is None else cache, use_cache)
        past = 0 if cache is None else int(cache.get_seq_length())
        bias = attention_bias(self.slopes, hidden, past, attention_mask, position_ids)
        if kind != "eager":
            bias = bias.to(hidden.dtype)  # kernels take no wider one
        states: tuple[Tensor, ...] = ()
        weights: tuple[Tensor, ...] = ()
        for layer in self.layers:
            states += (hidden,) if output_hidden_states else ()
            hidden, layer_weights = layer(hidden, bias, cache)
            weights += (layer_weights,) if output_attentions else ()
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=(*states, hidden) if output_hidden_states else None,
            attentions=weights if output_attentions else None,
            **{_CACHE_FIELD: cache},
        )

    def _cache_to_fill(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if given is not None:
                raise ValueError(
                    "gradient checkpointing would write into the cache a second time in backward: pass no cache, or "
                    "call gradient_checkpointing_disable()"
                )
            return None
        if given is not None:
            return given
        return DynamicCache() if (self.config.use_cache if use_cache is None else use_cache) else None


class Step1ForCausalLM(Step1PreTrainedModel, GenerationMixin):
    """Step-1 with its output head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        self.model = Step1Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, Sq, V], and the loss where there are labels. Otherwise as `Step1Model.forward`.

        Args:
            input_ids: [B, Sq].
            attention_mask: see `attention_bias`.
            position_ids: see `attention_bias`.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: [B, Sq, H] instead of ids.
            labels: [B, Sq] the tokens themselves (they are shifted here), −100 where there is no loss.
            use_cache: keep keys and values.
            output_attentions: return the weights of all layers.
            output_hidden_states: return the input of every layer and the result.
            logits_to_keep: how many of the last positions get logits, or which ones; 0 for all.
            cache: the newer name of `past_key_values`.
            **kwargs: `num_items_in_batch` for the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache=cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{_CACHE_FIELD: outputs.get(_CACHE_FIELD)},
        )


Step1Model.register_for_auto_class("AutoModel")
Step1ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
