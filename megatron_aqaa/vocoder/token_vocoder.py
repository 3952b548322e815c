"""Audio token ids in, speech out: both networks behind one object."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from megatron_aqaa.network_file import load_network
from megatron_aqaa.ops.index import deinterleave_codes
from megatron_aqaa.vocabulary import LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP, Vocabulary
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, GroupCodes, SamplingConfig
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, VoiceFrames
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from megatron_aqaa.vocoder.group_repair import OnFault, Piece, refuse, repaired_groups
from megatron_aqaa.vocoder.streaming import SpeechStream, StreamConfig

_MADE_BY = "tools/train_vocoder.py"


class TokenVocoder:
    """Speaks merged audio token ids with the voice it was trained on.

    The same ids and seed give the same waveform. Noise belongs to the place of a group in the utterance, so a stream
    draws the same as the whole. Ids that break the order of groups are an error, or, where `on_fault` is given, dropped
    and reported to it (see `group_repair`).

    Args:
        acoustic: codes → frames.
        generator: frames → waveform.
        vocabulary: layout of the token ids.
        sampling: how frames are drawn.
    """

    def __init__(
        self,
        acoustic: AcousticModel,
        generator: Generator,
        vocabulary: Vocabulary,
        sampling: SamplingConfig | None = None,
    ) -> None:
        ours = (acoustic.config.linguistic_size, acoustic.config.semantic_size)
        if ours != (vocabulary.linguistic_size, vocabulary.semantic_size):
            raise ValueError(
                f"an acoustic model for codebooks of {ours[0]} and {ours[1]} does not fit the vocabulary's "
                f"{vocabulary.linguistic_size} and {vocabulary.semantic_size}"
            )
        # activations are channels-last images of width 1: with weights laid out alike a depthwise convolution takes
        # 100 µs instead of 229 at [2, 252, 192], and differs in the last bit
        for network in (acoustic, generator):
            convert_conv2d_weight_memory_format(network.eval(), torch.channels_last)
        self.acoustic, self.generator = acoustic, generator
        self.vocabulary = vocabulary
        self.sampling = sampling or SamplingConfig()

    @classmethod
    def load(cls, directory: str | Path, sampling: SamplingConfig | None = None) -> TokenVocoder:
        """Read `acoustic/` and `generator/` below `directory`, as tools/train_vocoder.py writes them.

        Raises:
            ValueError: a file is missing or damaged, or the parts do not fit each other.
        """
        directory = Path(directory)
        return cls(
            load_network(AcousticModel, AcousticConfig, directory / "acoustic" / "model.pt", _MADE_BY),
            load_network(Generator, GeneratorConfig, directory / "generator" / "model.pt", _MADE_BY),
            Vocabulary.load(directory / "acoustic" / "vocabulary.yaml"),
            sampling,
        )

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.generator.config.mel.sample_rate_hz

    @property
    def samples_per_group(self) -> int:
        """Samples of one group: 120 ms."""
        return FRAMES_PER_GROUP * self.generator.config.mel.hop_length

    @torch.inference_mode()
    def synthesize(self, token_ids: npt.ArrayLike, seed: int = 0, on_fault: OnFault = refuse) -> torch.Tensor:
        """Speak whole groups.

        Args:
            token_ids: [5 G] merged ids in groups `[L L S S S]`.
            seed: decides the noise.
            on_fault: told of each fault that is repaired; by default the first one is an error.

        Returns:
            [N] float32 on the CPU, exactly 120 ms for each group; empty for no ids.

        Raises:
            ValueError: an id breaks the group structure; names its position.
        """
        groups = list(repaired_groups([np.asarray(token_ids)], self.vocabulary, on_fault))
        if not groups:
            return torch.zeros(0)
        frames = self.frames(self.codes(list(itertools.chain(*groups))), seed)
        return self.generator(frames, self.breath(range(len(groups)), seed))[0].cpu()

    def stream(
        self,
        token_ids: Iterable[Piece],
        seed: int = 0,
        config: StreamConfig | None = None,
        on_fault: OnFault = refuse,
    ) -> Iterator[torch.Tensor]:
        """Speak while ids arrive; see `streaming`.

        Args:
            token_ids: merged ids, one by one, in chunks of any length, or both.
            seed: decides the noise.
            config: how the stream is cut.
            on_fault: told of each fault that is repaired; by default the first one is an error.

        Yields:
            Waveforms [N] float32 that, joined, last exactly 120 ms for each whole group.

        Raises:
            ValueError: an id breaks the group structure; names its position.
        """
        groups = repaired_groups(token_ids, self.vocabulary, on_fault)
        return SpeechStream(self, seed, config or StreamConfig()).run(groups)

    def codes(self, token_ids: npt.ArrayLike) -> GroupCodes:
        """Codes of merged ids [5 G], with a batch of one.

        Raises:
            ValueError: an id breaks the group structure; names its position.
        """
        codes = deinterleave_codes(token_ids, **self.vocabulary.audio_range)
        device = self.acoustic.mel_mean.device
        return GroupCodes(
            torch.from_numpy(codes.linguistic).view(1, -1, LINGUISTIC_PER_GROUP).to(device),
            torch.from_numpy(codes.semantic).view(1, -1, SEMANTIC_PER_GROUP).to(device),
        )

    def frames(self, codes: GroupCodes, seed: int, first_group: int = 0) -> VoiceFrames:
        """Frames of codes that begin with group `first_group` of the utterance."""
        groups = range(first_group, first_group + codes.linguistic.shape[1])
        shape = (FRAMES_PER_GROUP, self.acoustic.config.num_mels)
        return self.acoustic.sample(codes, self._noise("mel", groups, seed, shape)[None], self.sampling)

    def breath(self, groups: range, seed: int) -> torch.Tensor:
        """Noise that the generator filters, [1, N]."""
        return self._noise("breath", groups, seed, (self.samples_per_group,))[None]

    def _noise(self, purpose: str, groups: range, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal values for each group, by its number alone, joined along the first axis."""
        parts = []
        for group in groups:
            source = torch.Generator().manual_seed(2 * (seed * 1_000_003 + group) + (purpose == "mel"))
            parts.append(torch.randn(shape, generator=source))
        return torch.cat(parts).to(self.acoustic.mel_mean.device)
