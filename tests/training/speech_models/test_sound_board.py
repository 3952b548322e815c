"""Pictures of spectrograms, by hand, and the event files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_aqaa.training.speech_models.sound_board import HIGHEST, LOWEST, SoundBoard, picture


def test_a_picture_is_upright_and_black_to_white() -> None:
    log_mel = torch.full((4, 3), LOWEST)
    log_mel[1, 0] = HIGHEST  # second frame, lowest band
    log_mel[2, 2] = (LOWEST + HIGHEST) / 2
    drawn = picture(log_mel)
    assert drawn.shape == (3, 3, 4)
    assert drawn[:, 2, 1].tolist() == [1, 1, 1]
    torch.testing.assert_close(drawn[:, 0, 2], torch.tensor([1.0, 0.5, 0.0]))
    assert drawn.sum() == 4.5


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = SoundBoard(tmp_path)
    board.numbers(5, {"mel_l1": 0.5})
    board.speech(5, "one", torch.zeros(2205), 22050, torch.zeros(8, 80))
    board.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("mel_l1")] == [(5, 0.5)]
    assert read.Audio("one")[0].sample_rate == 22050
    assert (read.Images("one mel")[0].width, read.Images("one mel")[0].height) == (8, 80)
    assert read.Images("one spectrogram")[0].height == 706 // 2 + 1  # 32 ms at 22.05 kHz
