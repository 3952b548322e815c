"""A guided step of the 105 M flow model's field, beside its plain eager form: what `vocoder.py` prints a line of.

    python benchmarks/full_size_field.py    # processor time, and the share of it that products of matrices take

The plain form has the same weights and gives the same result, which is checked. It is the released code's: scores,
an added bias that says who sees whom, softmax and mixture as four operations of their own, in fp32.
"""

from __future__ import annotations

import copy

import torch
from side_by_side import Forms, core_milliseconds, medians
from torch import Tensor, nn

from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.unet_layers import Attention


class PlainAttention(nn.Module):
    """Attention as it is usually written."""

    def __init__(self, fast: Attention) -> None:
        super().__init__()
        self.num_heads, self.to_out = fast.num_heads, fast.to_out
        self.to_q, self.to_k, self.to_v = fast.to_q, fast.to_k, fast.to_v

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """[B, F, C] → [B, F, C]; everybody sees everybody."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        bias = torch.zeros(len(x), 1, x.shape[1], x.shape[1], dtype=query.dtype)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        return self.to_out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


def plain_attention(model: FlowModel) -> FlowModel:
    """A copy with plain attention."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(getattr(module, "attn1", None), Attention):
            module.attn1 = PlainAttention(module.attn1)
    return model


def field_forms(num_tokens: int) -> Forms:
    """One guided step for so many tokens; random weights."""
    torch.manual_seed(0)
    model = FlowModel(FlowConfig()).eval()
    batch = TokenBatch(torch.randint(model.config.vocab_size, (1, num_tokens)))
    masks = model.masks(batch)
    noise, time = torch.randn(1, masks[1].size, model.config.mel.num_mels), torch.full((1,), 0.3)
    fields = {}
    for name, form in (("ours", model), ("eager", plain_attention(model))):
        condition = form.condition(batch, masks)
        fields[name] = form.decoder.field(condition, masks[1], flow.GUIDANCE)
    torch.testing.assert_close(fields["ours"](noise, time), fields["eager"](noise, time), rtol=1e-3, atol=1e-3)

    def bf16(name: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fields[name](noise, time)

    return {
        "ours, bf16": lambda: bf16("ours"),
        "ours, fp32": lambda: fields["ours"](noise, time),
        "eager, bf16": lambda: bf16("eager"),
        "eager, fp32": lambda: fields["eager"](noise, time),
    }


NUM_TOKENS = 210  # 5 s
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "_slow_conv2d_forward")
"""What no form of the same network can leave out; part of torch's fused attention would belong to them."""


@torch.inference_mode()
def main() -> None:
    """Print the forms."""
    torch.set_num_threads(1)
    forms = field_forms(NUM_TOKENS)
    times = medians(forms, 5, core_milliseconds)
    for name, call in forms.items():
        with torch.profiler.profile() as profile:
            call()
        parts = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profile.key_averages()}
        share = sum(parts.get(product, 0) for product in PRODUCTS) / sum(parts.values())
        print(f"{name:12s}{times[name]:8.0f} ms, products {share:4.0%}")


if __name__ == "__main__":
    main()
