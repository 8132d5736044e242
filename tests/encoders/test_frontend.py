"""The front end gives the reference's numbers."""

import pytest
import torch

from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import UsageError
from tests.conftest import GOLDEN_INPUTS, golden_waveform


@pytest.mark.parametrize("key", [key for key in GOLDEN_INPUTS if key.endswith("0/log_mel")])
def test_log_mel_matches_the_golden_arrays(key):
    expected = torch.from_numpy(GOLDEN_INPUTS[key])
    log_mel = LogMel(16000)(torch.from_numpy(golden_waveform(key)))
    assert log_mel.shape == expected.shape
    assert (log_mel - expected).norm() / expected.norm() < 1e-5


def test_32_khz_front_end_is_nnaudio_s():
    from nnAudio.features import MelSpectrogram

    reference = MelSpectrogram(
        sr=32000, n_fft=800, win_length=800, hop_length=320, n_mels=80, fmin=50, fmax=16000, power=2, verbose=False
    )
    waveform = torch.randn(2, 40000, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = (reference(waveform) + torch.finfo().eps).log()
    log_mel = LogMel(32000)(waveform)[:, 0]
    assert (log_mel - expected).norm() / expected.norm() < 1e-5


def test_frame_count_is_one_more_than_whole_hops():
    front_end = LogMel(16000)
    for samples in (400, 1600, 16000, 16159, 16160, 80000):
        frames = front_end(torch.zeros(1, samples)).shape[-1]
        assert frames == samples // 160 + 1 == int(front_end.frame_counts(torch.tensor(samples)))


def test_long_input_is_worked_off_in_blocks_without_a_seam():
    waveform = torch.randn(1, 160 * 9000, generator=torch.Generator().manual_seed(0))
    whole = LogMel(16000)(waveform)
    part = LogMel(16000)(waveform[:, 160 * 8100 :])
    assert torch.allclose(whole[..., 8110:], part[..., 10:], atol=1e-4)


def test_autocast_does_not_reach_the_front_end():
    waveform = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LogMel(16000)(waveform)
    assert torch.equal(inside, LogMel(16000)(waveform))


def test_other_sample_rate_is_refused():
    with pytest.raises(UsageError, match="44100"):
        LogMel(44100)
