"""A recording as the flow model is told of it, to learn from or as a voice prompt: its tokens beside its mel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig
from megatron_aqaa.vocoder.cosyvoice.token_ids import flow_tokens


@dataclass(frozen=True)
class SpokenTokens:
    """A recording's tokens and mel.

    Attributes:
        tokens: [S] flat ids, or [S, 2] pairs of codes.
        mel: [F, M], F = `FlowConfig.num_frames(S)`.
    """

    tokens: Tensor
    mel: Tensor


class SpokenTokensMaker:
    """Waveform and token ids → `SpokenTokens`.

    Args:
        vocabulary: layout of the token ids.
        config: of the flow model.
    """

    def __init__(self, vocabulary: Vocabulary, config: FlowConfig) -> None:
        self.vocabulary, self.config, self.log_mel = vocabulary, config, MelSpectrogram(config.mel)

    def __call__(self, waveform: Tensor, token_ids: npt.ArrayLike) -> SpokenTokens:
        """Put one beside the other.

        Args:
            waveform: [N] float32 at the rate of the mel; a last group that it does not fill ends in silence.
            token_ids: [5 G] merged ids of the same recording.

        Raises:
            ValueError: an id breaks the group structure, or the lengths differ by more than a group.
        """
        tokens = flow_tokens(token_ids, self.vocabulary, self.config.token_form)
        num_ids, mel = np.size(token_ids), self.config.mel
        duration_s = num_ids / GROUP_SIZE * GROUP_DURATION_S
        missing = round(duration_s * mel.sample_rate_hz) - len(waveform)
        if abs(missing) > GROUP_DURATION_S * mel.sample_rate_hz:
            found_s = len(waveform) / mel.sample_rate_hz
            raise ValueError(f"{found_s:.2f} s, but its {num_ids} tokens last {duration_s:.2f} s")
        padded = functional.pad(waveform, (0, max(0, missing + mel.hop_length)))
        frames = self.config.num_frames(len(tokens))
        return SpokenTokens(tokens, self.log_mel(padded[None])[0, :, :frames].T)
