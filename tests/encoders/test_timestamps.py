"""Timestamps on a regular grid: exact, within the audio, and shifted passes equal to a slow loop over them."""

import pytest
import torch

from m2d_bench.encoders.timestamps import default_hop, hops, regular_timestamp_embeddings
from m2d_bench.errors import UsageError
from tests.conftest import small_encoder

PATCHES = [(16, 16), (16, 4), (80, 2), (80, 4)]
LENGTHS = [400, 1000, 1279, 1280, 1281, 4321, 17120, 31680, 33279, 64000]


def noise(samples, rows=1):
    return torch.rand(rows, samples, generator=torch.Generator().manual_seed(3)) * 2 - 1


def slow_loop(encoder, waveform, hop):
    """Every pass by hand, window by window: {time in ms: embedding}, times within the audio alone."""
    patch_time = encoder.config.vit.patch_size[1]
    found = {}
    log_mel, _ = encoder.log_mel(waveform, torch.tensor([waveform.shape[1]]))
    for before in range(0, patch_time, hop):
        frames = torch.cat([torch.zeros(1, 1, 80, before), log_mel], dim=3)
        window = encoder.config.vit.input_size[1] // patch_time * patch_time
        column = 0
        for start in range(0, frames.shape[3], window):
            part = frames[..., start : start + window]
            (encoded,) = encoder.encode_log_mel(part, torch.tensor([part.shape[3]]), last_only=True)
            for embedding in encoded[0]:
                centre = 10 * (column * patch_time + (patch_time - 1) / 2 - before)
                if 0 <= centre <= 1000 * waveform.shape[1] / encoder.sample_rate:
                    found[centre] = embedding
                column += 1
    return found


@pytest.mark.parametrize("samples", [4321, 33279, 64000])
@pytest.mark.parametrize(
    ("patch_size", "frames", "hop"),
    [((16, 16), 208, 4), ((16, 16), 208, 1), ((16, 16), 200, 8), ((16, 4), 200, 2), ((80, 2), 100, 2)],
)
def test_shifted_passes_equal_a_slow_loop(patch_size, frames, hop, samples):
    encoder = small_encoder(patch_size, frames)
    waveform = noise(samples)
    with torch.no_grad():
        expected = slow_loop(encoder, waveform, hop)
        embeddings, times = regular_timestamp_embeddings(encoder, waveform, 10.0 * hop)
    assert times[0].tolist() == sorted(expected)
    wanted = torch.stack([expected[time] for time in sorted(expected)])
    torch.testing.assert_close(embeddings[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("patch_size", PATCHES)
def test_timestamps_keep_every_rule_of_hear(patch_size, samples):
    encoder = small_encoder(patch_size, 200)
    end = samples / 16
    for hop in hops(encoder):
        embeddings, times = regular_timestamp_embeddings(encoder, noise(samples, 2), hop)
        assert embeddings.dtype == torch.float32
        assert times.dtype == torch.float64
        assert times.shape == embeddings.shape[:2]
        assert 0 <= times.min() <= min(hop, end)
        assert max(0.0, end - hop) <= times.max() <= end
        assert torch.allclose(times.diff(), torch.full_like(times[:, 1:], hop), rtol=0, atol=1e-9)


def test_windows_that_hold_no_whole_number_of_patches_stay_regular():
    encoder = small_encoder((16, 16), 201)
    _, times = regular_timestamp_embeddings(encoder, noise(16000 * 7), 160.0)
    assert times.diff().unique().tolist() == [160.0]
    assert encoder.timestamp_embeddings(noise(16000 * 7))[1].diff().unique().numel() > 1


@pytest.mark.parametrize("samples", [4321, 64000])
def test_a_hop_of_the_models_own_gives_the_encoders_frames(samples):
    encoder = small_encoder((16, 16), 208)
    own, own_times = encoder.timestamp_embeddings(noise(samples))
    embeddings, times = regular_timestamp_embeddings(encoder, noise(samples), 160.0)
    count = times.shape[1]
    assert torch.equal(times, own_times[:, :count])
    torch.testing.assert_close(embeddings, own[:, :count])


@pytest.mark.slow
def test_timestamps_of_three_hours_do_not_drift():
    encoder = small_encoder((80, 4), 200)
    seconds = 3 * 3600
    waveform = torch.zeros(1, 16000 * seconds).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embeddings, times = regular_timestamp_embeddings(encoder, waveform)
        late = 16000 * (seconds - 4)  # a window's start: what stands there stands at its own time
        alone, _ = regular_timestamp_embeddings(encoder, waveform[:, late:])
    expected = 15 + 40 * torch.arange(times.shape[1], dtype=torch.float64)
    assert (times[0] - expected).abs().max() < 1e-6
    assert 1000 * seconds - 40 <= times[0, -1] <= 1000 * seconds
    torch.testing.assert_close(embeddings[0, -40:], alone[0, -40:], rtol=1e-4, atol=1e-4)


def test_audio_shorter_than_half_a_patch_gives_one_frame_at_its_middle():
    embeddings, times = regular_timestamp_embeddings(small_encoder((16, 16)), noise(400))
    assert times.tolist() == [[12.5]]
    assert embeddings.shape[:2] == (1, 1)


@pytest.mark.parametrize(("patch_size", "hop"), [((16, 16), 40), ((16, 4), 40), ((80, 2), 20), ((16, 5), 50)])
def test_the_default_hop_is_the_coarsest_that_event_tasks_allow(patch_size, hop):
    assert default_hop(small_encoder(patch_size, 200)) == hop


def test_an_impossible_hop_is_refused_with_the_possible_ones():
    with pytest.raises(UsageError, match="160, 80, 40, 20, 10"):
        regular_timestamp_embeddings(small_encoder((16, 16)), noise(4000), 50.0)
