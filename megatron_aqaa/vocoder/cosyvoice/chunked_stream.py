"""A stream of the full-size vocoder: the flow model draws each frame once, under the chunk mask it was trained with.

A drawing ends where the groups that have arrived end, so a chunk and its lookahead are drawn together. The lookahead is
there for the waveform generator, which hears a few frames ahead; it is the beginning of what is spoken next. With a
context as long as the utterance the mel is that of the whole utterance under the same mask; with a shorter one the flow
model has forgotten what lies before it. A voice prompt is never forgotten: every drawing begins with it.

The encoder keeps nothing either: it runs again over the context, whose length is fixed, so that cost stays linear. At
the published sizes 24 groups, six of them context, are encoded in 51 ms of one core (40 ms without the context), and
each of the ten guided steps of the field takes .40 s: a cache of keys and values would save .3 %.
"""

from __future__ import annotations

import torch

from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens
from megatron_aqaa.vocoder.cosyvoice.streaming_voice import StreamingVoice
from megatron_aqaa.vocoder.frames import VoiceFrames
from megatron_aqaa.vocoder.streaming import SpeechStream, StreamConfig


class ChunkedStream(SpeechStream):
    """See the module's docstring."""

    voice: StreamingVoice

    def __init__(
        self, voice: StreamingVoice, seed: int, config: StreamConfig, prompt: SpokenTokens | None = None
    ) -> None:
        super().__init__(voice, seed, config)
        self.prompt = prompt
        self.ends: list[int] = []  # groups before which the drawings so far ended

    def _frames(self, first: int, last: int) -> VoiceFrames:
        """Frames of groups `first … last − 1`; those that were drawn are kept, their pitch is found anew."""
        if self.context is None:
            return self.voice.heard(self._drawn(first, last))
        mel = self.context.mel
        if self.ends[-1] < last:
            mel = torch.cat((mel, self._drawn(first, last)[:, mel.shape[1] :]), dim=1)
        return self.voice.heard(mel)  # the last frames had silence after them when their pitch was found

    def _drawn(self, first: int, last: int) -> torch.Tensor:
        """[1, F, M]: mel of these groups in the chunks they came in."""
        edges = tuple(end - first for end in self.ends if end > first)
        self.ends.append(last)
        return self.voice.mel(self._codes(first, last), self.seed, first, edges, self.prompt)

    def _kept(self, frames: VoiceFrames, start: int, stop: int) -> VoiceFrames:
        """The lookahead too."""
        return frames.slice(start, frames.mel.shape[1])
