import math

import pytest
import torch

from avlens.views.spectrogram import mel_spectrogram


def tone(hertz, *, seconds=1.0, rate=16000):
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 5000.0])
def test_a_tone_is_loudest_in_its_own_band(hertz):
    heard = mel_spectrogram(tone(hertz), 16000)
    loudest = heard.decibels.mean(1).argmax()
    assert abs(float(heard.hertz[loudest]) - hertz) < 0.1 * hertz


def test_a_click_is_where_it_sounds():
    waveform = torch.zeros(16000)
    waveform[8000] = 1.0
    heard = mel_spectrogram(waveform, 16000)
    assert abs(float(heard.seconds[heard.decibels.mean(0).argmax()]) - 0.5) < 0.02


def test_a_long_sound_keeps_its_short_events():
    waveform = torch.zeros(16000 * 60)
    waveform[16000 * 40 + 7] = 1.0
    heard = mel_spectrogram(waveform, 16000, at_most=100)
    assert heard.decibels.shape[1] <= 100
    assert abs(float(heard.seconds[heard.decibels.mean(0).argmax()]) - 40) <= 0.6
    assert heard.decibels.max() == 0


@pytest.mark.parametrize("waveform", [torch.zeros(16000), torch.zeros(1)])
def test_silence_is_silent(waveform):
    assert (mel_spectrogram(waveform, 16000).decibels == -80).all()


@pytest.mark.parametrize("rate", [8000, 44100])
def test_every_rate_has_all_bands(rate):
    heard = mel_spectrogram(tone(300.0, rate=rate), rate)
    assert heard.decibels.shape[0] == 64 and heard.decibels.isfinite().all()
    assert float(heard.hertz[-1]) < rate / 2
