"""Audio token ids in, speech out, at full size: flow model and HiFT generator behind one object."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from megatron_aqaa.network_file import load_network
from megatron_aqaa.vocabulary import GROUP_DURATION_S, Vocabulary
from megatron_aqaa.vocoder.cosyvoice.chunked_stream import ChunkedStream
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.hift_layers import fold_weight_norm
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens, SpokenTokensMaker
from megatron_aqaa.vocoder.cosyvoice.streaming_voice import StreamingVoice, can_stream
from megatron_aqaa.vocoder.cosyvoice.token_ids import POSITIONS_PER_GROUP, flow_tokens
from megatron_aqaa.vocoder.excitation import START
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP
from megatron_aqaa.vocoder.group_repair import OnFault, Piece, refuse, repaired_groups
from megatron_aqaa.vocoder.streaming import StreamConfig

_MADE_BY = "tools/train_vocoder.py"


class FullSizeVocoder:
    """Speaks merged audio token ids with the voice it was trained on; the same ids and seed give the same waveform.

    Args:
        flow_model: tokens → mel.
        generator: mel → waveform; its weight norm is folded away.
        vocabulary: layout of the token ids.
        sampling: how mel is drawn.

    Raises:
        ValueError: the parts are of different mel or token sizes.
    """

    def __init__(
        self,
        flow_model: FlowModel,
        generator: HiftGenerator,
        vocabulary: Vocabulary,
        sampling: FlowSampling | None = None,
    ) -> None:
        if flow_model.config.mel != generator.config.mel:
            raise ValueError(
                f"the flow model makes {flow_model.config.mel}, the generator speaks from {generator.config.mel}"
            )
        if flow_model.config.vocab_size != vocabulary.linguistic_size + vocabulary.semantic_size:
            raise ValueError(
                f"a flow model for {flow_model.config.vocab_size} codes does not fit the vocabulary's "
                f"{vocabulary.linguistic_size} and {vocabulary.semantic_size}"
            )
        self.flow_model, self.generator = flow_model.eval(), fold_weight_norm(generator.eval())
        self.vocabulary, self.sampling = vocabulary, sampling or FlowSampling()
        self.voice = (
            StreamingVoice(self.flow_model, self.generator, vocabulary, self.sampling)
            if can_stream(flow_model.config)
            else None
        )

    @classmethod
    def load(cls, directory: str | Path, sampling: FlowSampling | None = None) -> FullSizeVocoder:
        """Read `flow/` and `hift/` below `directory`, as tools/train_vocoder.py writes them.

        Raises:
            ValueError: a file is missing or damaged, or the parts do not fit each other.
        """
        directory = Path(directory)
        return cls(
            load_network(FlowModel, FlowConfig, directory / "flow" / "model.pt", _MADE_BY),
            load_network(HiftGenerator, HiftConfig, directory / "hift" / "model.pt", _MADE_BY),
            Vocabulary.load(directory / "flow" / "vocabulary.yaml"),
            sampling,
        )

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.generator.config.mel.sample_rate_hz

    def prompt(self, waveform: Tensor, token_ids: npt.ArrayLike) -> SpokenTokens:
        """A recording as a voice prompt.

        Args:
            waveform: [N] float32 at `sample_rate_hz`.
            token_ids: [5 G] merged ids of the same recording, G ≥ 1.

        Raises:
            ValueError: the network was trained without prompts, an id breaks the group structure, there is none, or
                the lengths differ by more than a group.
        """
        if not self.flow_model.config.voice_prompt:
            raise ValueError("this flow model was trained without voice prompts (model.voice_prompt is false)")
        if not np.size(token_ids):
            raise ValueError("a voice prompt needs one group of tokens or more")
        return SpokenTokensMaker(self.vocabulary, self.flow_model.config)(waveform, token_ids)

    @torch.inference_mode()
    def synthesize(
        self,
        token_ids: npt.ArrayLike,
        seed: int = 0,
        on_fault: OnFault = refuse,
        prompt: SpokenTokens | None = None,
    ) -> Tensor:
        """Speak whole groups.

        Args:
            token_ids: [5 G] merged ids in groups `[L L S S S]`.
            seed: decides the noise.
            on_fault: told of each fault that is repaired; by default the first one is an error.
            prompt: voice to speak with, of `prompt`; it is not spoken itself.

        Returns:
            [N] float32 on the CPU, 120 ms for each group; at 22.05 kHz the last 20 ms or so, which fill no frame, are
            silent.

        Raises:
            ValueError: an id breaks the group structure, with its position; a prompt that does not fit the network.
        """
        groups = list(repaired_groups([np.asarray(token_ids)], self.vocabulary, on_fault))
        if not groups:
            return torch.zeros(0)
        token_ids = list(itertools.chain(*groups))
        if self.voice:  # as one chunk of a stream
            frames = self.voice.frames(self.voice.codes(token_ids), seed, prompt=prompt)
            return self.voice.generator(frames, self.voice.breath(range(len(groups)), seed), START)[0].cpu()
        mel = self._mel(token_ids, seed, prompt)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of the generator's own noise
            waveform = self.generator(mel).waveform[0].float().cpu()
        waveform = waveform[self._left_over(prompt) :]
        length = round(len(groups) * GROUP_DURATION_S * self.sample_rate_hz)
        return functional.pad(waveform, (0, length - len(waveform)))  # or cut: a prompt's left-over may fill a frame

    def stream(
        self,
        token_ids: Iterable[Piece],
        seed: int = 0,
        config: StreamConfig | None = None,
        on_fault: OnFault = refuse,
        prompt: SpokenTokens | None = None,
    ) -> Iterator[Tensor]:
        """Speak while ids arrive; see `streaming`, and `TokenVocoder.stream` for the arguments.

        The prompt is as in `synthesize`; it is encoded with every chunk, which costs its length each time.

        Yields:
            Waveforms [N] float32 that, joined, last exactly 120 ms for each whole group.

        Raises:
            ValueError: an id breaks the group structure, or a group is no whole number of frames.
        """
        if not self.voice:
            raise ValueError(
                f"a stream needs {FRAMES_PER_GROUP} frames a group, as the 24 kHz form with tokens in columns has "
                f"(examples/vocoder/flow_24khz.yaml); this vocoder speaks whole utterances"
            )
        groups = repaired_groups(token_ids, self.vocabulary, on_fault)
        return ChunkedStream(self.voice, seed, config or StreamConfig(), prompt).run(groups)

    def _mel(self, token_ids: list[int], seed: int, prompt: SpokenTokens | None = None) -> Tensor:
        """[1, F, M], without the prompt's frames."""
        config, device = self.flow_model.config, self.generator.window.device
        tokens = flow_tokens(token_ids, self.vocabulary, config.token_form)[None].to(device)
        source = torch.Generator().manual_seed(seed)
        num_tokens = tokens.shape[1] + (len(prompt.tokens) if prompt else 0)
        noise = torch.randn(1, config.num_frames(num_tokens), config.mel.num_mels, generator=source).to(device)
        return self.sampling.draw(self.flow_model, tokens, noise, prompt=prompt)

    def _left_over(self, prompt: SpokenTokens | None) -> int:
        """Samples of the prompt behind its last whole frame: at 22.05 kHz up to 23 ms."""
        if prompt is None:
            return 0
        config = self.flow_model.config
        duration_s = len(prompt.tokens) / POSITIONS_PER_GROUP[config.token_form] * GROUP_DURATION_S
        return round(duration_s * self.sample_rate_hz) - len(prompt.mel) * config.mel.hop_length
