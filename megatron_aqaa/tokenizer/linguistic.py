"""Linguistic codes: a recogniser's hidden states at 16.67 Hz, quantized by k-means.

The released tokenizer is a streaming Paraformer encoder with a `[1024, 512]` centroid file (Step-Audio, section 3.1).
Two encoders can be trained here: `sanm` is that one, in any size, and can be exported to the released files;
`convnext` is the miniature's, which hears the whole recording and learns in a minute on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS, FrontEndKind
from megatron_aqaa.tokenizer.layers import Encoder, EncoderConfig, FeatureNorm, valid_frames
from megatron_aqaa.tokenizer.sanm import SanmConfig, SanmEncoder

FRAMES_PER_CODE = 6  # 60 ms: low-frame-rate step n
STACKED_FRAMES = 7  # low-frame-rate window m


@dataclass(frozen=True)
class LinguisticConfig:
    """Kind and size of the linguistic encoder.

    Attributes:
        kind: which of the two.
        encoder: layers of `convnext`.
        num_layers: their number.
        sanm: size of `sanm`; the default is the released one.
    """

    kind: Literal["convnext", "sanm"] = "convnext"
    encoder: EncoderConfig = EncoderConfig()
    num_layers: int = 4
    sanm: SanmConfig = SanmConfig()

    @property
    def front_end(self) -> FrontEndKind:
        """What this encoder hears."""
        return "kaldi" if self.kind == "sanm" else "filter_bank"


class LinguisticEncoder(nn.Module):
    """Features → hidden states of 60 ms, and logits of 10 ms of the units that it learns to recognise.

    Args:
        config: kind and size.
        units: names of phones or text pieces; the first is silence or CTC's blank.
    """

    def __init__(self, config: LinguisticConfig, units: Sequence[str]) -> None:
        super().__init__()
        self.config, self.units = config, tuple(units)
        self.feature_norm = FeatureNorm(FRONT_ENDS[config.front_end].num_mels)
        self.body: SanmBody | ConvnextBody = SanmBody(config.sanm) if config.kind == "sanm" else ConvnextBody(config)
        self.unit_head = nn.Linear(self.body.width, FRAMES_PER_CODE * len(units))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states.

        Args:
            features: [B, F, M] of the front end, F a multiple of 6.
            lengths: [B] valid frames.

        Returns:
            [B, F / 6, D]
        """
        normal = self.feature_norm(features, valid_frames(lengths, features.shape[1]))
        return self.body(normal, lengths // FRAMES_PER_CODE)

    def unit_logits(self, hidden: Tensor) -> Tensor:
        """[B, F / 6, D] → [B, F, U]: each hidden state names the units of its six frames."""
        return self.unit_head(hidden).view(len(hidden), -1, len(self.units))


class ConvnextBody(nn.Module):
    """Normalised features [B, F, M] and codes [B] → [B, F / 6, D]."""

    def __init__(self, config: LinguisticConfig) -> None:
        super().__init__()
        self.width = config.encoder.width
        self.input = nn.Linear(STACKED_FRAMES * FRONT_ENDS[config.front_end].num_mels, self.width)
        self.encoder = Encoder(config.encoder, config.num_layers)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, normal: Tensor, num_codes: Tensor) -> Tensor:
        """See the class."""
        stacked = stack_frames(normal, "constant")
        return self.norm(self.encoder(self.input(stacked), valid_frames(num_codes, stacked.shape[1])))


class SanmBody(nn.Module):
    """As `ConvnextBody`, by the rule of a stream: chunks of 240 ms that look back."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.width = config.output_size
        self.sanm = SanmEncoder(config)

    def forward(self, normal: Tensor, num_codes: Tensor) -> Tensor:
        """See the class."""
        return self.sanm(stack_frames(normal, "replicate"), num_codes)


def stack_frames(features: Tensor, outside: Literal["constant", "replicate"]) -> Tensor:
    """Low-frame-rate stacking: [B, F, M] → [B, F / 6, 7 · M]; window t holds frames 6t − 3 … 6t + 3.

    Args:
        features: F a multiple of 6.
        outside: what stands for frames that lie outside: zeros, or the outermost frame.
    """
    context = STACKED_FRAMES // 2
    padded = functional.pad(features[:, None], (0, 0, context, context), outside)[:, 0]
    windows = padded.unfold(1, STACKED_FRAMES, FRAMES_PER_CODE)  # [B, F / 6, M, 7]
    return windows[:, : features.shape[1] // FRAMES_PER_CODE].transpose(2, 3).flatten(2)
