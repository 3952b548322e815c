"""The released semantic tokenizer: Whisper's spectrogram through an ONNX graph, in independent pieces of 30 s."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from megatron_aqaa.audio.whisper_mel import WhisperMel
from megatron_aqaa.tokenizer.speech import PIECE_SAMPLES

FRAME_RATE_HZ = 25
CODEBOOK_SIZE = 4096
SHORTEST_PIECE = 480  # samples; what is left over below that is dropped
Provider = Literal["auto", "cpu", "cuda"]
_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class ReleasedSemantic:
    """Prepared 16 kHz waveforms [N] → semantic codes at 25 Hz.

    The graph (`speech_tokenizer_v1.onnx`) takes a log-mel spectrogram `[1, 128, T]` and its length `int32 [1]`, by
    position, since their names differ between exports, and gives the codes. It hears a piece as a whole, so a stream
    can have no codes before a piece is complete.

    Args:
        path: the graph.
        provider: where it runs; "auto" takes CUDA where onnxruntime has it.
        num_threads: of the CPU.

    Raises:
        ValueError: no such file, no graph, other inputs, or onnxruntime (extra `[released-tokenizer]`) is missing.
    """

    def __init__(self, path: Path, provider: Provider = "auto", num_threads: int = 1) -> None:
        self.path = path
        self.session = _open(path, provider, num_threads)
        self.inputs = [i.name for i in self.session.get_inputs()]
        shape = self.session.get_inputs()[0].shape
        if len(self.inputs) != 2 or len(shape) != 3 or not isinstance(shape[1], int):
            raise ValueError(
                f"{path}: takes {[(i.name, i.shape) for i in self.session.get_inputs()]}; expected a spectrogram "
                f"[1, 128, T] and its length [1]"
            )
        self.mel = WhisperMel(shape[1])

    def codes(self, waveform: Tensor) -> Tensor:
        """Codes [F] int64 of [N] samples.

        Raises:
            ValueError: the graph gives more or fewer codes than 25 a second, or codes beyond 4095; names the 50 Hz
                graph if it is that.
        """
        pieces = [piece for piece in waveform.split(PIECE_SAMPLES) if len(piece) >= SHORTEST_PIECE]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(self._piece(piece) for piece in pieces)])

    def _piece(self, piece: Tensor) -> Tensor:
        mel = self.mel(piece[None])
        length = np.array([mel.shape[2]], dtype=np.int32)
        found = self.session.run(None, dict(zip(self.inputs, (mel.numpy(), length), strict=True)))[0].flatten()
        seconds = round(len(piece) / 16_000, 2)
        if abs(len(found) - FRAME_RATE_HZ * seconds) > 2:
            raise ValueError(self._wrong_rate(len(found), seconds))
        if found.min(initial=0) < 0 or found.max(initial=0) >= CODEBOOK_SIZE:
            raise ValueError(f"{self.path}: gave codes {found.min()} … {found.max()}; expected 0 … {CODEBOOK_SIZE - 1}")
        return torch.from_numpy(found.astype(np.int64))

    def _wrong_rate(self, count: int, seconds: float) -> str:
        problem = f"{self.path}: {count} codes for {seconds} s; expected {FRAME_RATE_HZ * seconds:g} (25 a second)"
        if abs(count - 2 * FRAME_RATE_HZ * seconds) <= 4:
            problem += "; this is CosyVoice's 50 Hz tokenizer, whose file has the same name: take the 25 Hz one"
        return problem


def _open(path: Path, provider: Provider, num_threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        remedy = "pip install 'megatron-aqaa[released-tokenizer]'"
        raise ValueError(f"{path}: reading it needs onnxruntime, which is not installed: {remedy}") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    there = onnxruntime.get_available_providers()
    wanted = "cuda" if provider == "auto" and "CUDAExecutionProvider" in there else provider
    wanted = "cpu" if wanted == "auto" else wanted
    if _PROVIDERS[wanted][0] not in there:
        raise ValueError(f"this onnxruntime cannot run on {wanted}, only with {', '.join(there)}: use provider cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_PROVIDERS[wanted])
    except Exception as error:  # onnxruntime has a class of its own for each fault
        raise ValueError(f"{path}: not a graph that onnxruntime can run ({error})") from None
    if provider == "cuda" and _PROVIDERS["cuda"][0] not in session.get_providers():  # it falls back with a log line
        raise ValueError(f"{path}: onnxruntime could not start CUDA (its libraries are missing?): use provider cpu")
    return session
