"""A small tokenizer with random weights in the files and with the tensors of the released one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_aqaa.tokenizer.centroids import save_centroids
from megatron_aqaa.tokenizer.released.export import export_graph
from megatron_aqaa.tokenizer.released.paraformer import Normalization, Paraformer, save_paraformer
from megatron_aqaa.tokenizer.released.tokenizer import CENTROIDS, GRAPH
from megatron_aqaa.tokenizer.sanm import SanmConfig, SanmEncoder

SMALL = SanmConfig(output_size=32, attention_heads=4, linear_units=64, num_blocks=3)
FOLDER = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"


class SemanticGraph(nn.Module):
    """Mel [1, 128, T] and its length [1] → codes [1, T / stride] int32."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(128, 16, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv1d(16, 64, 3, stride=stride // 2, padding=1, bias=False)

    def forward(self, mel: Tensor, length: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(20 * self.first(mel)))
        kept = torch.arange(hidden.shape[2])[None] * 4 < length[:, None]
        digits = (hidden.transpose(1, 2).unflatten(-1, (4, 16))).argmax(-1)
        return ((digits * torch.tensor([1, 8, 64, 512])).sum(-1) % 4096 * kept).int()


def write_released_files(directory: Path, stride: int = 4, seed: int = 0) -> Path:
    """`stride` 4 gives 25 codes a second, 2 the 50 of the graph that has the same name."""
    write_encoder_files(directory, seed)
    export_graph(SemanticGraph(stride), directory / GRAPH)
    return directory


def write_encoder_files(directory: Path, seed: int = 0) -> Path:
    """The linguistic half alone."""
    torch.manual_seed(seed)
    normalization = Normalization(torch.randn(560) - 8, 0.2 + 0.05 * torch.rand(560))
    save_paraformer(directory / FOLDER, Paraformer(SanmEncoder(SMALL), normalization))
    save_centroids(torch.randn(1024, SMALL.output_size), directory / CENTROIDS)
    return directory
