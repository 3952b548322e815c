"""Semantic codes: a recogniser at 25 Hz with a quantizer inside, after CosyVoice's supervised tokenizer.

Besides what is said, the codes must explain the mel spectrum and the pitch: a vocoder that sees only tokens has to find
the tune in them. Two encoders can be trained here: `whisper`, which can be exported to the released ONNX file, and
`convnext`, the miniature's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS, FrontEndKind
from megatron_aqaa.tokenizer.layers import Convolution, Encoder, EncoderConfig, FeatureNorm, valid_frames
from megatron_aqaa.tokenizer.quantizers import FsqConfig, QuantizerKind, VqEmaConfig, build_quantizer
from megatron_aqaa.tokenizer.whisper import TransformerLayers, WhisperConfig, WhisperEncoder

FRAMES_PER_CODE = 4  # 40 ms
PITCH_PER_CODE = 2  # pitch frames of 20 ms


@dataclass(frozen=True)
class SemanticConfig:
    """Kind and size of the semantic encoder.

    Attributes:
        kind: which of the two.
        encoder: width, heads and kernel of all layers of `convnext`.
        num_layers: its layers before the quantizer.
        whisper: size of `whisper`.
        num_layers_after: layers after the quantizer, of either kind, in the recogniser only.
        quantizer: which of the next two.
        fsq: finite scalar quantization.
        vq_ema: a codebook of running means.
    """

    kind: Literal["convnext", "whisper"] = "convnext"
    encoder: EncoderConfig = EncoderConfig()
    num_layers: int = 3
    whisper: WhisperConfig = WhisperConfig()
    num_layers_after: int = 1
    quantizer: QuantizerKind = "fsq"
    fsq: FsqConfig = FsqConfig()
    vq_ema: VqEmaConfig = VqEmaConfig()

    @property
    def front_end(self) -> FrontEndKind:
        """What this encoder hears."""
        return "whisper" if self.kind == "whisper" else "filter_bank"

    @property
    def width(self) -> int:
        """Channels of the states that are quantized."""
        return self.whisper.width if self.kind == "whisper" else self.encoder.width


class SemanticPrediction(NamedTuple):
    """What the quantized states say.

    Attributes:
        unit_logits: [B, F, U] at 100 Hz.
        mel: [B, F, M] normalised features.
        pitch: [B, F / 2] octaves over 150 Hz.
        quantizer_loss: scalar; 0 of predictions from codes.
    """

    unit_logits: Tensor
    mel: Tensor
    pitch: Tensor
    quantizer_loss: Tensor


class SemanticEncoder(nn.Module):
    """Features → codes of 40 ms, and from the codes what is said, mel and pitch for training.

    Args:
        config: kind and size.
        units: names of phones or text pieces; the first is silence or CTC's blank.
    """

    def __init__(self, config: SemanticConfig, units: Sequence[str]) -> None:
        super().__init__()
        width, num_mels = config.width, FRONT_ENDS[config.front_end].num_mels
        self.config, self.units = config, tuple(units)
        self.feature_norm = FeatureNorm(num_mels)
        self.body = WhisperEncoder(num_mels, config.whisper) if config.kind == "whisper" else ConvnextBody(config)
        self.early_unit_head = nn.Linear(width, FRAMES_PER_CODE * len(units))
        self.quantizer = build_quantizer(config.quantizer, width, config.fsq, config.vq_ema)
        self.recogniser = _recogniser(config)
        self.norm = nn.LayerNorm(width)
        self.unit_head = nn.Linear(width, FRAMES_PER_CODE * len(units))
        # mel and pitch are read from a code and its two neighbours: they must be in the codes, not worked out
        # from the whole utterance
        self.neighbours = Convolution(width, width, kernel_size=3)
        self.mel_head = nn.Linear(width, FRAMES_PER_CODE * num_mels)
        self.pitch_head = nn.Linear(width, PITCH_PER_CODE)

    def hidden(self, features: Tensor, lengths: Tensor) -> Tensor:
        """States before the quantizer: [B, F, M] features, [B] valid frames → [B, F / 4, D]."""
        normal = self.feature_norm(features, valid_frames(lengths, features.shape[1]))
        return self.body(normal, lengths)

    def early_unit_logits(self, hidden: Tensor) -> Tensor:
        """Units from the states before the quantizer, [B, F / 4, D] → [B, F, U]: for training only."""
        return self.early_unit_head(hidden).view(len(hidden), -1, len(self.units))

    def codes(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[B, F, M] features, [B] valid frames → [B, F / 4] int64 codes; ignore those of padded frames."""
        return self.quantizer.codes(self.hidden(features, lengths))

    def forward(self, features: Tensor, lengths: Tensor) -> SemanticPrediction:
        """Through the quantizer, with straight gradients: [B, F, M], [B] → predictions."""
        return self.quantize_and_predict(self.hidden(features, lengths), lengths)

    def quantize_and_predict(self, hidden: Tensor, lengths: Tensor) -> SemanticPrediction:
        """States before the quantizer [B, F / 4, D] → predictions."""
        quantized = self.quantizer(hidden, valid_frames(lengths // FRAMES_PER_CODE, hidden.shape[1]))
        return self.predict(quantized.embedded, lengths)._replace(quantizer_loss=quantized.loss)

    def predict(self, embedded: Tensor, lengths: Tensor) -> SemanticPrediction:
        """Predictions from embedded codes [B, F / 4, D] of `lengths` [B] valid frames."""
        valid = valid_frames(lengths // FRAMES_PER_CODE, embedded.shape[1])
        units = self.unit_head(self.norm(self.recogniser(embedded, valid)))
        local = functional.gelu(self.neighbours(embedded * valid[..., None]))
        batch = len(embedded)
        return SemanticPrediction(
            units.view(batch, -1, len(self.units)),
            self.mel_head(local).unflatten(-1, (FRAMES_PER_CODE, -1)).flatten(1, 2),
            self.pitch_head(local).view(batch, -1),
            embedded.new_zeros(()),
        )


class ConvnextBody(nn.Module):
    """Normalised features [B, F, M] and valid frames [B] → [B, F / 4, D]."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.first = Convolution(FRONT_ENDS[config.front_end].num_mels, width, kernel_size=5, stride=2)
        self.second = Convolution(width, width, kernel_size=3, stride=2)
        self.encoder = Encoder(config.encoder, config.num_layers)

    def forward(self, normal: Tensor, lengths: Tensor) -> Tensor:
        """See the class."""
        half = functional.gelu(self.first(normal))
        quarter = functional.gelu(self.second(half * valid_frames(lengths // 2, half.shape[1])[..., None]))
        return self.encoder(quarter, valid_frames(lengths // FRAMES_PER_CODE, quarter.shape[1]))


def _recogniser(config: SemanticConfig) -> nn.Module:
    if config.kind == "whisper":
        return TransformerLayers(config.whisper, config.num_layers_after)
    return Encoder(config.encoder, config.num_layers_after)
