from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_aqaa.data.audio_loading.effects import Draw, Effects, apply_effects, draw, trim, white_noise

RATE_HZ = 16000


def pulse(before: int, sound: int, after: int, floor: float = 0.0) -> torch.Tensor:
    """Silence, a tone, silence; in samples."""
    waveform = floor * torch.ones(before + sound + after)
    waveform[before : before + sound] = 0.5 * torch.sin(torch.arange(sound) * 0.3)
    return waveform


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_silence_at_both_ends_is_cut(floor: float) -> None:
    kept = trim(pulse(16000, 8000, 24000, floor), 40.0, RATE_HZ)
    # the windows of 400 that touch the tone, whole steps of 160, 1600 on both sides
    expected = 8000 + 2 * 1600
    assert expected <= len(kept) <= expected + 2 * (400 + 160)
    assert kept.abs().max() == 0.5 * torch.sin(torch.arange(8000) * 0.3).abs().max()


def test_the_loop_of_the_definition() -> None:
    random = np.random.default_rng(0)
    samples = random.standard_normal(9000) * np.repeat(10 ** random.uniform(-3, 0, 30), 300)
    power = [np.mean(samples[i : i + 400] ** 2) for i in range(len(samples) - 399)]
    loud = [i for i, p in enumerate(power) if 10 * np.log10(p / max(power)) >= -15]
    start, stop = loud[0] // 160 * 160 - 1600, -(-(loud[-1] + 400) // 160) * 160 + 1600
    waveform = torch.from_numpy(samples).float()
    torch.testing.assert_close(trim(waveform, 15.0, RATE_HZ), waveform[max(0, start) : stop], rtol=0, atol=0)


def test_nothing_but_silence_or_a_blink_stays_whole() -> None:
    for waveform in (torch.zeros(5000), torch.ones(Effects(trim_db=40).min_samples(RATE_HZ))):
        assert torch.equal(trim(waveform, 40.0, RATE_HZ), waveform)


def test_draws_depend_on_epoch_and_recording_alone() -> None:
    effects = Effects(gain_db=(-6, 6), noise_db=(-90, -46))
    draws = {draw(effects, epoch, index) for epoch in range(20) for index in range(20)}
    assert len(draws) == 400
    assert draw(effects, 3, 7) == draw(effects, 3, 7) in draws
    gains_db = 20 * np.log10([d.gain for d in draws])
    assert gains_db.min() >= -6 and gains_db.max() <= 6 and abs(gains_db.mean()) < 0.6
    levels_db = 20 * np.log10([d.noise for d in draws])
    assert levels_db.min() >= -90 and levels_db.max() <= -46 and abs(levels_db.mean() + 68) < 2
    assert draw(Effects(), 3, 7) == Draw(1.0, 0.0, 0)


def test_noise_is_white_has_its_level_and_goes_round() -> None:
    noise = white_noise(Draw(1.0, 0.01, (1 << 20) - 1000), 200_000, seed=0)
    assert len(noise) == 200_000
    assert float(noise.std()) == pytest.approx(0.01, rel=0.02)
    correlation = torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1]
    assert abs(float(correlation)) < 0.01
    torch.testing.assert_close(noise[1000:1100], white_noise(Draw(1.0, 0.01, 0), 100, seed=0))
    assert len(white_noise(Draw(1.0, 0.01, 5), 3 << 20, seed=0)) == 3 << 20


def test_effects_in_their_order() -> None:
    waveform = pulse(4000, 8000, 0)
    effects = Effects(trim_db=40, normalize_peak=True, gain_db=(-6, -6), noise_db=(-60, -60))
    drawn = draw(effects, 0, 0)
    result = apply_effects(waveform, effects, drawn, RATE_HZ)
    quiet = trim(waveform, 40, RATE_HZ)
    expected = quiet / 0.5 * 0.999 * 10 ** (-6 / 20) + white_noise(drawn, len(quiet), 0)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)
    assert apply_effects(waveform, Effects(), drawn, RATE_HZ) is waveform


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="trim_db -40"):
        Effects(trim_db=-40)
    with pytest.raises(ValueError, match="gain_db 6 … -6: the range must not fall"):
        Effects(gain_db=(6, -6))
