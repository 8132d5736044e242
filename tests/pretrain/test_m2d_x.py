"""The offline branch of M2D-X, noise and teachers: against slow references, sample by sample."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.errors import DataError, UsageError
from m2d_bench.pretrain import method as methods
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data import open_source, shards
from m2d_bench.pretrain.data import prepare as preparing
from m2d_bench.pretrain.data.noise import NoisySource, mixed, repeated
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.data.source import Crop, Source
from m2d_bench.pretrain.data.teachers import Alignment, SpeechTeacher, TaughtSource
from m2d_bench.settings import Compute

pytestmark = pytest.mark.usefixtures("tiny_is_smaller")

VIT = ViTConfig(width=64, depth=2, patch_size=(16, 16), input_size=(80, 96))
SMALL = {"predictor_width": 32, "predictor_depth": 1, "predictor_heads": 2}
N_FREQ, N_TIME = VIT.grid_size


def built(**arguments):
    method = methods.build("m2d_x", VIT, {**SMALL, **arguments})
    method.initialise(torch.Generator().manual_seed(0))
    return method.double()


def batch_of(**fields):
    index = torch.arange(3)
    log_mel = torch.randn(3, 1, 80, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(log_mel=log_mel, clips=index, starts=index, **fields)


def online_columns(method, batch, mask):
    """Encodings of visible and predictions of masked patches in their places, patch by patch: [B, N_T, N_F·D]."""
    tokens = method.encoder.embed(batch.log_mel)
    columns = torch.zeros(3, N_TIME, N_FREQ * VIT.width, dtype=torch.float64)
    for row in range(3):
        visible, masked = mask.visible[row : row + 1], mask.masked[row : row + 1]
        encoded = method.encode(tokens[row : row + 1, visible[0]])
        prediction = method.predict(encoded, type(mask)(visible, masked))
        for patches, outputs in ((visible, encoded[:, 1:]), (masked, prediction)):
            for patch, output in zip(patches[0].tolist(), outputs[0], strict=True):
                freq, time = divmod(patch, N_TIME)
                columns[row, time, freq * VIT.width : (freq + 1) * VIT.width] = output
    return columns @ method.offline_predictor.weight.T + method.offline_predictor.bias


@torch.no_grad()
def test_loss_of_labels_is_binary_cross_entropy_of_the_means_over_time():
    method = built(scenario="supervised", offline_size=4)
    labels = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    batch, mask = batch_of(labels=labels), method.draw_mask(3)
    logits, total = online_columns(method, batch, mask), 0.0
    for row in range(3):
        for number in range(4):
            mean = sum(float(logits[row, time, number]) for time in range(N_TIME)) / N_TIME
            probability = 1 / (1 + math.exp(-mean))
            total -= math.log(probability if labels[row, number] else 1 - probability) / 12
    losses = method(batch, mask).losses
    assert float(losses["loss_offline"]) == pytest.approx(total, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(losses["loss_m2d"]) + total, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["distillation", "regularisation"])
def test_loss_of_features_is_that_of_m2d_against_standardised_ones(scenario):
    method = built(scenario=scenario, offline_size=7, m2d_weight=0.7, offline_weight=0.3)
    features = torch.randn(3, N_TIME, 7, dtype=torch.float64) * 5 + 2
    batch, mask = batch_of(teacher_features=features), method.draw_mask(3)
    outputs, total = online_columns(method, batch, mask).numpy(), 0.0
    for row in range(3):
        for time in range(N_TIME):
            target = features[row, time].numpy()
            target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            one = outputs[row, time]
            total += (2 - 2 * one @ target / np.linalg.norm(one) / np.linalg.norm(target)) / (3 * N_TIME)
    losses = method(batch, mask).losses
    assert float(losses["loss_offline"]) == pytest.approx(total, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(0.7 * float(losses["loss_m2d"]) + 0.3 * total, rel=1e-5)


def test_a_weight_of_zero_leaves_its_part_out():
    batch, mask = batch_of(), built(offline_size=1).draw_mask(3)
    alone = built(offline_weight=0)
    assert not hasattr(alone, "offline_predictor")
    plain = methods.build("m2d", VIT, SMALL).double()
    plain.load_state_dict(alone.state_dict())
    assert torch.equal(alone(batch, mask).losses["loss"], plain(batch, mask).losses["loss"])
    free = built(m2d_weight=0, scenario="supervised", offline_size=2)
    labels = torch.ones(3, 2, dtype=torch.float64)
    assert set(free(batch._replace(labels=labels), mask).losses) == {"loss", "loss_offline"}
    with pytest.raises(UsageError, match="both 0"):
        built(m2d_weight=0, offline_weight=0)


class Clips(Source):
    """Spectrograms of one value each; noise clips may be shorter than a crop."""

    def __init__(self, values, frames=6, length=6, channels=1):
        self.values, self.frames, self.length, self.channels = values, frames, length, channels
        self.n_clips, self.fingerprint, self.norm_stats = len(values), repr(values), (float(np.mean(values)), 2.0)

    def path(self, index):
        return f"{index}.wav"

    def read(self, index, rng):
        values = np.full((1, 80, self.frames), np.nan, np.float32)
        values[..., : self.length] = self.values[index] + np.arange(self.length)
        return Crop(values, 0)


def test_noise_of_ratio_zero_third_and_one():
    clean, noise = torch.randn(2, 1, 80, 6) * 3, torch.randn(2, 1, 80, 6) * 3
    for ratio in (0, 0.3, 1):
        for at in np.ndindex(2, 1, 80, 6):
            power = (1 - ratio) * math.exp(clean[at]) + ratio * math.exp(noise[at])
            assert float(mixed(clean, noise, ratio)[at]) == pytest.approx(math.log(power), abs=1e-5)
    assert torch.equal(mixed(clean, noise, 0), clean)
    assert torch.equal(mixed(clean, noise, 1), noise)


@pytest.mark.parametrize("length", [1, 4, 5, 6])
def test_noise_shorter_than_the_crop_is_repeated(length):
    spectrogram = torch.full((2, 1, 80, 6), torch.nan)
    spectrogram[0, ..., :length] = torch.arange(length).float()
    spectrogram[1, ..., :6] = torch.arange(6).float()
    assert torch.equal(repeated(spectrogram)[0, 0, 3], torch.arange(6).float() % length)
    assert torch.equal(repeated(spectrogram)[1, 0, 3], torch.arange(6).float())


@pytest.mark.parametrize(("ratio", "clip_length", "noise_length"), [(0, 6, 6), (0.3, 6, 4), (0.3, 4, 6), (1, 4, 3)])
def test_both_are_centred_by_their_own_mean_and_divided_by_the_clips_deviation(ratio, clip_length, noise_length):
    clips, noise = Clips([-7.0, -3.0], length=clip_length), Clips([4.0, 1.0, 7.0], length=noise_length)
    source = NoisySource(clips, noise, ratio, seed=3)
    crops = source.crops(np.array([1, 0, 1]), [None] * 3, first=2)
    batch = source.batch(crops, torch.device("cpu"))
    plain = clips.batch(clips.crops(np.array([1, 0, 1]), [None] * 3), torch.device("cpu"))
    assert torch.equal(batch.clean, plain.log_mel)
    for row, clip in enumerate([-3.0, -7.0, -3.0]):
        number = float(crops.noise[row, 0, 0, 0])
        for frame in range(6):
            target = clip + frame - -5.0 if frame < clip_length else 0.0
            background = number + frame % noise_length - 4.0
            expected = math.log((1 - ratio) * math.exp(target) + ratio * math.exp(background)) / 2
            assert float(batch.log_mel[row, 0, 5, frame]) == pytest.approx(expected, abs=1e-6)


def test_every_pass_over_the_noise_is_another_order_drawn_from_seed_and_number_alone():
    clips, noise = Clips(list(range(40))), Clips([float(n) for n in range(10)])

    def drawn(seed, first, count):
        source = NoisySource(clips, noise, 0.5, seed)
        return source.crops(np.arange(count), [None] * count, first).noise[:, 0, 0, 0].tolist()

    whole = drawn(0, 0, 40)
    passes = [whole[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert whole[17:33] == drawn(0, 17, 16)
    assert whole != drawn(1, 0, 40)


def test_noise_ratios_outside_and_noise_of_images_are_refused():
    clips = Clips([0.0])
    for ratio in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match="noise_ratio is from 0"):
            NoisySource(clips, clips, ratio, 0)
    with pytest.raises(UsageError, match="images"):
        NoisySource(clips, Clips([0.0], channels=3), 0.5, 0)


@pytest.mark.parametrize(("patch_frames", "hop_ms"), [(2, 20.0), (4, 20.0), (16, 20.0), (2, 10.0), (16, 160.0)])
@pytest.mark.parametrize("length", [40, 300])
def test_a_teachers_frames_lie_beside_every_crop(patch_frames, hop_ms, length):
    """At every offset, frame by frame: the teacher's frames that begin within a patch column, averaged."""
    features, alignment = torch.randn(length, 3), Alignment(hop_ms, 9, patch_frames)
    for start in range(60):
        chosen = alignment.averaged(features[alignment.beside(start, length)][None])[0]
        assert chosen.shape == (9, 3)
        for column in range(9):
            first = math.floor(start * 10 / hop_ms) + column * patch_frames * 10 // int(hop_ms)
            rows = [features[min(first + i, length - 1)] for i in range(patch_frames * 10 // int(hop_ms))]
            torch.testing.assert_close(chosen[column], torch.stack(rows).mean(0))


@pytest.mark.parametrize(("patch_frames", "hop_ms"), [(1, 20.0), (3, 20.0), (2, 160.0), (16, 25.0)])
def test_frames_that_do_not_fit_a_patch_are_refused(patch_frames, hop_ms):
    with pytest.raises(UsageError, match=f"a frame every {hop_ms:g} ms, a patch column is {patch_frames * 10} ms"):
        Alignment(hop_ms, 9, patch_frames)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Twelve sound files of one to nine seconds."""
    root, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(12):
        samples = rng.normal(0, 0.1, 16000 * (number % 3 * 4 + 1)).astype(np.float32)
        soundfile.write(root / f"{number}.wav", samples, 16000)
    return root


TEACHER = "random:m2d_vit_tiny-80x96p80x4"
CPU = Compute(device="cpu", precision="fp32")


def heard(path, layer):
    """The teacher's frames of a whole file, from the waveform."""
    samples = soundfile.read(path, dtype="float32")[0]
    waveform = np.pad(samples, (0, max(0, 7 * 16000 - len(samples))))[None]
    return zoo.load(TEACHER, compute=CPU).hidden_states(waveform)[layer - 1 if layer else -1][0]


@pytest.mark.parametrize("layer", [None, 1])
def test_a_teacher_hears_whole_clips_however_they_are_batched(sounds, layer):
    teacher, source = SpeechTeacher(TEACHER, layer, 16000, CPU), open_source(sounds, 96)
    source.norm_stats = (-7.0, 4.0)
    taught = TaughtSource(source, teacher, columns=6, patch_frames=16)
    crops = taught.crops(np.arange(12), [np.random.default_rng(n) for n in range(12)])
    batch = taught.batch(crops, torch.device("cpu"))
    assert batch.teacher_features.shape == (12, 6, teacher.facts.size)
    for row, start in enumerate(crops.starts.tolist()):
        frames = heard(source.names([row])[0], layer)
        for column in range(6):
            first = start // 4 + 4 * column
            expected = frames[first : first + 4].mean(0)
            torch.testing.assert_close(batch.teacher_features[row, column], expected, atol=1e-4, rtol=1e-4)


def test_a_clip_that_a_teacher_cannot_hear_to_its_end_is_skipped_as_others_are(sounds, monkeypatch):
    teacher, source = SpeechTeacher(TEACHER, 1, 16000, CPU), open_source(sounds, 96, on_bad_file="skip")
    taught, whole = TaughtSource(source, teacher, columns=6, patch_frames=16), teacher.read

    def read(path):
        if path.name == "5.wav":  # of which any crop can be read
            raise DataError("5.wav: ends in the middle.")
        return whole(path)

    monkeypatch.setattr(teacher, "read", read)
    crops = taught.crops(np.arange(12), [np.random.default_rng(n) for n in range(12)])
    assert source.skipped == {"5.wav": "5.wav: ends in the middle."}
    names = [Path(name) for name in source.names(crops.clips.tolist())]
    assert "5.wav" not in {path.name for path in names}
    for path, waveform in zip(names, crops.teacher, strict=True):
        assert np.array_equal(waveform, whole(path))


def test_features_that_were_prepared_are_those_computed_on_the_fly(sounds, tmp_path):
    teacher = SpeechTeacher(TEACHER, 1, 16000, CPU)
    settings = PrepareSettings(teacher=TEACHER, layer=1, device="cpu", precision="fp32", shard_mb=1)
    index = prepare([sounds], tmp_path / "mels", settings).index
    assert index.teacher == teacher.facts
    stored, plain = open_source(tmp_path / "mels", 96), open_source(sounds, 96)
    stored.teach(columns=6, patch_frames=16)
    plain.norm_stats = stored.norm_stats
    assert stored.names(range(12)) == [str(Path(name).relative_to(sounds)) for name in plain.names(range(12))]
    taught = TaughtSource(plain, teacher, columns=6, patch_frames=16)
    for seed in range(3):
        first = stored.crops(np.arange(12), [np.random.default_rng(seed)] * 12)
        second = taught.crops(np.arange(12), [np.random.default_rng(seed)] * 12)._replace(starts=first.starts)
        features = [
            source.batch(crops, torch.device("cpu")).teacher_features
            for source, crops in ((stored, first), (taught, second))
        ]
        torch.testing.assert_close(*features, atol=4e-3, rtol=4e-3)


def test_prepared_features_are_checked_and_resumed_with_the_same_teacher_alone(sounds, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(preparing, "_LONG_SECONDS", 8)
    teachers = [tmp_path / f"m2d_vit_tiny-80x96p80x4-{copy}" / "checkpoint-1.pth" for copy in "ab"]
    for path in teachers:
        checkpoint.save(zoo.read(TEACHER), path)
    settings = PrepareSettings(teacher=str(teachers[0]), layer=1, device="cpu", precision="fp32")
    prepare([sounds], tmp_path / "mels", settings)
    assert "GB an hour of sound" in caplog.text
    assert "there are some of 9 s: where memory runs out, --jobs 1" in caplog.text
    prepare([sounds], tmp_path / "mels", replace(settings, teacher=str(teachers[1])))
    for change in ({"layer": 2}, {"precision": "bf16"}):
        with pytest.raises(UsageError, match="was begun with teacher="):
            prepare([sounds], tmp_path / "mels", replace(settings, **change))
    rows = np.load(tmp_path / "mels" / shards.ROWS)
    path = tmp_path / "mels" / shards.shard_name(0)
    content = bytearray(path.read_bytes())
    content[int(rows[4]["features"]["offset"]) + 100] ^= 1
    path.write_bytes(content)
    source = open_source(tmp_path / "mels", 900)
    source.read(4, np.random.default_rng(0))
    source.teach(columns=50, patch_frames=16)
    source.read(3, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"shard-000000\.tar: .* is not what was prepared"):
        source.read(4, np.random.default_rng(0))


def test_a_teacher_of_another_rate_or_without_the_layer_is_refused():
    with pytest.raises(
        UsageError, match=f"--teacher {TEACHER}: it works at 16000 Hz, the model that learns at 32000 Hz"
    ):
        SpeechTeacher(TEACHER, None, 32000, CPU)
    for layer in (0, 99):
        with pytest.raises(UsageError, match=f"--teacher {TEACHER}: it has no layer {layer}; its layers are 1 to 2"):
            SpeechTeacher(TEACHER, layer, 16000, CPU)


@pytest.mark.parametrize("layer", [None, 1])
def test_clips_that_take_more_memory_than_there_is_are_named_by_their_length(layer, monkeypatch):
    teacher = SpeechTeacher(TEACHER, layer, 16000, CPU)
    monkeypatch.setattr(M2DEncoder, "log_mel", lambda self, waveform, lengths: torch.empty(2**60))
    with pytest.raises(DataError, match=r"20 s of sound at once take more memory .* --max-seconds"):
        teacher.features([torch.zeros(20 * 16000)])
    monkeypatch.setattr(M2DEncoder, "log_mel", lambda self, waveform, lengths: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match"):
        teacher.features([torch.zeros(16000)])
