"""The encoder gives the reference's numbers, whatever else is in the batch, for any length."""

import numpy as np
import pytest
import torch

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.precision import TOLERANCE
from m2d_bench.encoders.protocol import AudioEncoder
from m2d_bench.encoders.vit import ViT, ViTConfig
from m2d_bench.errors import AudioError, UsageError
from tests.conftest import GOLDEN, golden_waveform, small_encoder

WITHOUT_NORM_STATS = {"80x208p16x16_golden": {"norm_stats": (-6.9, 4.5)}}
"""Settings of golden models whose files do not hold what their arrays were normalised with."""


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_features_and_layers_match_the_golden_arrays(folder):
    golden = np.load(folder / "runtime.npz")
    encoder = M2DEncoder.from_checkpoint(checkpoint.read(folder, **WITHOUT_NORM_STATS.get(folder.name, {})))
    assert len(golden) > 1
    for key in golden:
        waveform, expected = golden_waveform(key), torch.from_numpy(golden[key])
        features = expected[-1] if key.endswith("/layers") else expected
        layers = encoder.hidden_states(waveform)
        assert layers[-1].shape == features.shape
        assert relative(layers[-1], features) < 1e-4
        assert relative(encoder.scene_embeddings(waveform), features.mean(1)) < 1e-4
        assert relative(encoder.timestamp_embeddings(waveform)[0], features) < 1e-4
        if key.endswith("/layers"):
            assert relative(torch.stack(layers), expected) < 1e-4


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_built_positions_are_the_stored_ones(folder):
    found = checkpoint.read(folder)
    vit = found.config.vit
    assert torch.allclose(ViT(vit).pos_embed, found.encoder["pos_embed"], atol=1e-6)


def test_every_encoder_fulfils_the_contract():
    assert isinstance(small_encoder(), AudioEncoder)


@pytest.mark.parametrize(
    "encoder",
    [
        small_encoder(),
        small_encoder((80, 2), 400),
        small_encoder((16, 4), 200, sample_rate=32000),
        small_encoder(frames=1001),
        small_encoder(features="flat"),
        small_encoder(encoding="one_pass"),
        small_encoder(encoding="one_pass", dur_frames=300),
    ],
    ids=["16x16", "80x2", "16x4-32k", "1001-frames", "flat", "one-pass", "dur-frames"],
)
def test_embedding_does_not_depend_on_batch_mates_or_padding(encoder):
    rate = encoder.sample_rate
    lengths = [rate * 5, rate // 40, round(rate * 2.08), rate * 2 + 7, round(rate * 10.33)]
    alone = [noise(n) for n in lengths]
    batch = 10 * torch.rand(len(lengths), max(lengths), generator=torch.Generator().manual_seed(1))  # padding is noise
    for row, waveform in zip(batch, alone, strict=True):
        row[: len(waveform)] = waveform
    together, timestamps = encoder.timestamp_embeddings(batch, lengths)
    scenes = encoder.scene_embeddings(batch, lengths)
    counts = encoder.frame_counts(torch.tensor(lengths)).tolist()
    layers = encoder.hidden_states(batch, lengths)
    for i, waveform in enumerate(alone):
        own, own_timestamps = encoder.timestamp_embeddings(waveform)
        assert own.shape[1] == counts[i]
        assert torch.allclose(together[i, : counts[i]], own[0], atol=1e-5)
        assert torch.count_nonzero(together[i, counts[i] :]) == 0
        assert torch.equal(timestamps[i, : counts[i]], own_timestamps[0])
        assert torch.allclose(scenes[i], encoder.scene_embeddings(waveform)[0], atol=1e-5)
        assert torch.allclose(layers[0][i, : counts[i]], encoder.hidden_states(waveform)[0][0], atol=1e-5)


def test_arrays_and_single_waveforms_are_taken_too():
    encoder, waveform = small_encoder(), noise(16000)
    expected = encoder.scene_embeddings(waveform[None])
    assert torch.equal(encoder.scene_embeddings(waveform), expected)
    assert torch.equal(encoder.scene_embeddings(waveform.double().numpy()), expected)


@pytest.mark.parametrize("seconds", [0.01, 0.025, 1.0, 600.0])
def test_any_length_is_encoded(seconds):
    encoder = small_encoder((16, 4), 200)
    samples = round(16000 * seconds)
    embeddings, timestamps = encoder.timestamp_embeddings(noise(samples))
    assert embeddings.shape[:2] == timestamps.shape
    assert embeddings.shape[1] == -(-(max(samples, 400) // 160 + 1) // 4)
    assert embeddings.isfinite().all()


def test_timestamps_are_centres_of_patches_in_milliseconds():
    _, timestamps = small_encoder((16, 4), 200).timestamp_embeddings(noise(16000 * 5))
    assert torch.allclose(timestamps[0, :3], torch.tensor([15.0, 55.0, 95.0], dtype=torch.float64))
    assert torch.allclose(timestamps[0].diff(), torch.tensor(40.0, dtype=torch.float64))


def test_one_pass_takes_the_first_positions_when_narrower_and_equals_chunks():
    chunks, one_pass = small_encoder(), small_encoder(encoding="one_pass")
    waveform = noise(16000)
    assert torch.allclose(chunks.scene_embeddings(waveform), one_pass.scene_embeddings(waveform), atol=1e-6)
    longer = noise(16000 * 5)
    assert not torch.allclose(chunks.scene_embeddings(longer), one_pass.scene_embeddings(longer), atol=1e-3)


def test_wider_positions_are_resized_bicubically_with_antialiasing():
    vit = small_encoder().vit
    grid = vit.pos_embed[0, 1:].T.reshape(1, 128, 5, 13)
    expected = torch.nn.functional.interpolate(grid, (5, 31), mode="bicubic", antialias=True)
    assert torch.allclose(vit.positions(31), expected[0].permute(1, 2, 0))


def test_flat_features_average_the_frequency_patches():
    waveform = noise(16000)
    stacked = small_encoder().timestamp_embeddings(waveform)[0]
    flat = small_encoder(features="flat").timestamp_embeddings(waveform)[0]
    assert torch.allclose(stacked.unflatten(-1, (5, 128)).mean(2), flat, atol=1e-6)


def test_bf16_stays_close_and_returns_float32():
    encoder = small_encoder()
    waveform = noise(4, 32000)
    expected = encoder.scene_embeddings(waveform)
    encoder.precision = "bf16"
    found = encoder.scene_embeddings(waveform)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("native", [True, False], ids=["oneDNN", "plain"])
def test_bf16_embeddings_move_with_their_batch_within_the_tolerance(native):
    encoder = M2DEncoder.from_checkpoint(checkpoint.read(GOLDEN[-1]))
    encoder.precision = "bf16"
    batch = noise(5, 80000)
    with torch.backends.mkldnn.flags(enabled=native):
        together = encoder.scene_embeddings(batch)
        for row, scene in zip(batch, together, strict=True):
            alone = encoder.scene_embeddings(row)[0]
            assert (alone - scene).abs().max() <= TOLERANCE["bf16"] * alone.abs().max()


def test_bf16_embeddings_do_not_depend_on_batch_mates_either():
    encoder = small_encoder()
    encoder.precision = "bf16"
    lengths = [80000, 33280, 7520]
    batch = noise(3, 80000)
    together = encoder.scene_embeddings(batch, lengths)
    for row, length, scene in zip(batch, lengths, together, strict=True):
        assert torch.allclose(encoder.scene_embeddings(row[:length])[0], scene, atol=1e-5)


def test_arrays_of_any_layout_are_taken():
    encoder, waveform = small_encoder(), noise(2, 16000).numpy()
    expected = encoder.scene_embeddings(waveform)
    for odd in (np.asfortranarray(waveform), waveform.astype(">f4"), waveform[:, ::-1][:, ::-1], waveform.tolist()):
        assert torch.equal(encoder.scene_embeddings(odd), expected)


def test_gradients_flow_through_windows_and_masks():
    encoder = small_encoder().requires_grad_(True)
    encoder.scene_embeddings(noise(2, 50000), [50000, 20000]).sum().backward()
    assert encoder.vit.patch_embed.proj.weight.grad.abs().sum() > 0


def test_digest_tells_weights_and_settings_but_not_names():
    digest = small_encoder().digest
    assert digest == small_encoder().digest
    assert digest != small_encoder(features="flat").digest
    assert digest != small_encoder(norm_stats=(-7.0, 4.0)).digest
    other = small_encoder()
    assert digest == other.digest
    other.vit.cls_token.data[0, 0, 0] += 1
    assert digest != other.digest


def test_digests_of_earlier_records_are_still_those_of_their_encoders():
    encoder = small_encoder()
    for parameter in encoder.parameters():
        parameter.data.zero_()
    assert encoder.digest == "1f049c21755d321a"


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "not empty"),
        (torch.zeros(2, 0), "not empty"),
        (torch.zeros(1, 2, 3), r"\[1, 2, 3\]"),
        (torch.tensor([0.0] * 800 + [float("nan")]), "NaN"),
        (torch.tensor([[0.0] * 800, [float("inf")] * 800]), r"row\(s\) \[1\]"),
        (torch.zeros(800, dtype=torch.int16), "32768"),
        ([[0.0, 0.0], [0.0]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_unusable_waveforms_get_a_message(waveform, message):
    with pytest.raises(AudioError, match=message):
        small_encoder().scene_embeddings(waveform)


def test_wrong_rate_says_how_to_resample():
    with pytest.raises(AudioError, match=r"44100 Hz.*16000 Hz.*audio\.read"):
        small_encoder().scene_embeddings(noise(44100), sample_rate=44100)


def test_wrong_lengths_get_a_message():
    for lengths in ([900, 900], [0], [801]):
        with pytest.raises(AudioError, match="between 1 and 800"):
            small_encoder().scene_embeddings(noise(800), lengths)


def test_impossible_settings_get_a_message():
    for wrong in ({"features": "Stacked"}, {"encoding": "one"}, {"norm_stats": None}, {"norm_stats": (0.0, 0.0)}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            small_encoder(**wrong)
    with pytest.raises(UsageError, match="dur_frames"):
        small_encoder(dur_frames=300)
    with pytest.raises(UsageError, match="tile"):
        ViTConfig(width=128, depth=1, patch_size=(30, 4), input_size=(80, 200))
    with pytest.raises(UsageError, match="multiple of 64"):
        ViTConfig(width=100, depth=1, patch_size=(16, 4), input_size=(80, 200))


@pytest.mark.parametrize("peak", [1e18, 3e38])
def test_a_waveform_too_large_for_a_spectrogram_is_refused(peak):
    with pytest.raises(AudioError, match="too large for a spectrogram"):
        small_encoder().scene_embeddings(torch.tensor([[0.0, peak] * 8000]))
