"""Batches for pre-training: every clip in its turn, whoever reads it, from whatever the path holds."""

import csv
import json
import multiprocessing
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import DataError, UsageError
from m2d_bench.pretrain.data import Crop, CropLoader, EpochSampler, Source, measure_norm_stats, open_source, shards
from m2d_bench.pretrain.data.labels import add_labels, read_labels
from m2d_bench.pretrain.data.loader import CHUNK
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.data.source import Subset

FRAMES = 48


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Ten clips of 0.3 to 1.2 s: shorter and longer than a crop."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for i in range(10):
        soundfile.write(folder / f"{i}.wav", rng.standard_normal(4800 + 1600 * i) * 0.05 * (i + 1), 16000)
    return folder


@pytest.fixture(scope="module")
def prepared(sounds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare([sounds], folder, PrepareSettings(shard_mb=0.05))
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The reference tool's layout: float32 and float16 log-mels of 30 to 66 frames."""
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(1)
    (folder / "lms").mkdir()
    for i in range(10):
        log_mel = rng.normal(-7, 4, (1, 80, 30 + 4 * i)).astype((np.float32, np.float16)[i % 2])
        np.save(folder / "lms" / f"{i}.npy", log_mel)
    write_list(folder / "files.csv", [f"lms/{i}.npy" for i in range(10)])
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(2)
    for i, suffix in enumerate(("png", "jpg", "JPEG", "png")):
        (folder / str(i)).mkdir()
        pixels = rng.integers(0, 256, (40 + i, 60), np.uint8) if i == 3 else rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / str(i) / f"image.{suffix}")
    return folder


def write_list(path, names, column="file_name"):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[column, "label"], *([name, "x"] for name in names)])


class Numbers(Source):
    """Clips that are their own number, with a random digit beside it."""

    norm_stats = (0.0, 1.0)
    fingerprint = "numbers"

    def __init__(self, n_clips):
        self.n_clips = n_clips

    def path(self, index):
        return str(index)

    def read(self, index, rng):
        return Crop(np.array([index, rng.random()], np.float32), 0)


def loader(source, *, workers=0, **settings):
    sampler = EpochSampler(n_clips=source.n_clips, **{"batch_size": 4, "seed": 1, "epoch": 0, **settings})
    return CropLoader(source, sampler, workers)


def pairs(crops):
    return [(each.values, each.clips) for each in crops]


def batches(source, **settings):
    return pairs(loader(source, **settings))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(nan=9e9), b.nan_to_num(nan=9e9)) and torch.equal(i, j)
        for (a, i), (b, j) in zip(one, other, strict=True)
    )


def rng(seed=0):
    return np.random.default_rng(seed)


# --- what a path holds


def test_a_prepared_crop_is_a_stretch_of_the_clip_s_log_mel(sounds, prepared):
    source = open_source(prepared, FRAMES)
    assert source.n_clips == 10
    assert source.names([9, 0]) == ["9.wav", "0.wav"]
    whole = LogMel(16000)(torch.from_numpy(soundfile.read(sounds / "9.wav", dtype="float32")[0])[None])[0].numpy()
    starts = set()
    for seed in range(10):
        crop = source.spectrogram(torch.from_numpy(source.read(9, rng(seed)).values.copy())[None])[0].numpy()
        assert (crop.shape, crop.dtype) == ((1, 80, FRAMES), np.float32)
        distance = [np.abs(whole[:, :, s : s + FRAMES] - crop).max() for s in range(whole.shape[2] - FRAMES + 1)]
        assert min(distance) < 0.01
        starts.add(int(np.argmin(distance)))
    assert len(starts) > 5


def test_the_last_frame_of_a_clip_can_be_drawn(prepared):
    source = open_source(prepared, 60)  # clip 3 has 61 frames: two places
    crops = {source.read(3, rng(seed)).values.tobytes() for seed in range(20)}
    assert len(crops) == 2


def test_the_statistics_of_a_prepared_folder_are_its_own(prepared):
    source, index = open_source(prepared, FRAMES), shards.Index.read(prepared)
    assert source.norm_stats == (index.mean, index.std)
    assert source.fingerprint == index.fingerprint


@pytest.mark.parametrize("kind", ["prepared", "arrays", "sounds"])
def test_short_clips_are_exactly_zero_behind_their_end_and_nowhere_else(kind, request):
    folder = request.getfixturevalue(kind)
    source = open_source(folder / "files.csv" if kind == "arrays" else folder, FRAMES)
    source.norm_stats = (-7.123, 4.2)
    frames = 30 if kind == "arrays" else 31
    batch = torch.from_numpy(np.stack([source.read(0, rng()).values, source.read(9, rng()).values]))
    log_mel = source.log_mel(batch)
    assert log_mel.shape == (2, 1, 80, FRAMES)
    assert (log_mel[0, :, :, frames:] == 0).all()
    assert not (log_mel[0, :, :, :frames] == 0).any()
    assert not (log_mel[1] == 0).any()


def test_the_reference_tool_s_log_mels_are_read_and_normalised(arrays):
    source = open_source(arrays / "files.csv", FRAMES)
    assert source.n_clips == 10
    assert source.norm_stats is None
    assert source.names([3]) == [str(arrays / "lms" / "3.npy")]
    whole, crop = np.load(arrays / "lms" / "9.npy").astype(np.float32), source.read(9, rng()).values
    (start,) = (s for s in range(66 - FRAMES + 1) if np.array_equal(whole[:, :, s : s + FRAMES], crop))
    source.norm_stats = (-7.0, 4.0)
    expected = torch.from_numpy((whole[:, :, start : start + FRAMES] + 7) / 4)[None]
    torch.testing.assert_close(source.log_mel(torch.from_numpy(crop)[None]), expected)


def test_paths_of_a_list_may_be_relative_to_another_folder(arrays, tmp_path):
    write_list(tmp_path / "files.csv", ["0.npy", "1.npy"])
    source = open_source(tmp_path / "files.csv", FRAMES, root=arrays / "lms")
    assert source.read(0, rng()).values.shape == (1, 80, FRAMES)


def test_a_crop_of_sound_is_a_stretch_of_its_waveform_and_its_log_mel_the_front_end_s(sounds):
    source = open_source(sounds, FRAMES)
    whole = soundfile.read(sounds / "9.wav", dtype="float32")[0]
    crop = source.read(9, rng()).values
    assert (crop.shape, crop.dtype) == (((FRAMES - 1) * 160,), np.float32)
    assert any(np.array_equal(whole[s : s + len(crop)], crop) for s in range(len(whole) - len(crop) + 1))
    assert len({source.read(9, rng(seed)).values.tobytes() for seed in range(10)}) > 5
    source.norm_stats = (-7.0, 4.0)
    expected = (LogMel(16000)(torch.from_numpy(crop)[None]) + 7) / 4
    assert torch.equal(source.log_mel(torch.from_numpy(crop)[None]), expected)


def test_sound_at_another_rate_is_resampled_to_the_same_length(tmp_path):
    soundfile.write(tmp_path / "a.flac", rng().standard_normal(44100) * 0.1, 44100)
    crop = open_source(tmp_path, FRAMES, 32000).read(0, rng()).values
    assert crop.shape == ((FRAMES - 1) * 320,)
    assert np.isfinite(crop).all()


def test_images_are_cropped_and_flipped(images):
    source = open_source(images, 24)
    assert source.n_clips == 4
    for index in range(4):
        crop = source.read(index, rng()).values
        assert (crop.shape, crop.dtype) == ((3, 24, 24), np.float32)
        assert 0 <= crop.min() < 0.4 < 0.6 < crop.max() <= 1
    assert len({source.read(0, rng(seed)).values.tobytes() for seed in range(10)}) == 10
    assert open_source(images, 24, height=16).read(0, rng()).values.shape == (3, 16, 24)


def test_about_half_of_the_images_are_flipped(tmp_path):
    from PIL import Image

    Image.fromarray(np.tile(np.arange(0, 250, 5, np.uint8), (50, 1))).save(tmp_path / "slope.png")
    source = open_source(tmp_path, 16)
    rows = [source.read(0, rng(seed)).values[0, 0] for seed in range(100)]
    flipped = sum(row[0] > row[-1] for row in rows)
    assert 30 < flipped < 70


def test_images_are_normalised_like_the_rest(images):
    source = open_source(images, 24)
    source.norm_stats = measure_norm_stats(source)
    batch = torch.from_numpy(np.stack([source.read(index, rng()).values for index in range(4)]))
    log_mel = source.log_mel(batch)
    assert abs(float(log_mel.mean())) < 0.5
    assert 0.5 < float(log_mel.std()) < 1.5


def test_fingerprints_tell_lists_apart(sounds, arrays, images, tmp_path):
    soundfile.write(tmp_path / "one.wav", np.full(800, 0.1), 16000)
    paths = (sounds, tmp_path, arrays / "files.csv", images)
    found = [open_source(path, FRAMES).fingerprint for path in paths]
    assert len(set(found)) == 4
    assert found == [open_source(path, 2 * FRAMES).fingerprint for path in paths]


def test_what_a_path_may_hold_is_said_where_it_holds_something_else(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder. Allowed are a folder that m2d-bench prepare wrote"):
        open_source(tmp_path / "nowhere", FRAMES)
    with pytest.raises(DataError, match="holds no files"):
        open_source(tmp_path, FRAMES)
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "readme").write_text("")
    with pytest.raises(DataError, match=r"holds files: 1 \.npy, 1 without suffix\. Allowed are"):
        open_source(tmp_path, FRAMES)
    write_list(tmp_path / "other.csv", ["a.npy"], column="path")
    with pytest.raises(DataError, match="no column file_name; it has"):
        open_source(tmp_path / "other.csv", FRAMES)
    write_list(tmp_path / "wav.csv", ["a.wav"])
    with pytest.raises(DataError, match=r"lists 'a.wav', which is no \.npy file"):
        open_source(tmp_path / "wav.csv", FRAMES)
    write_list(tmp_path / "none.csv", [])
    with pytest.raises(DataError, match="nothing below"):
        open_source(tmp_path / "none.csv", FRAMES)


def test_a_folder_that_is_not_prepared_to_the_end_is_refused(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(DataError, match="Start the same m2d-bench prepare again"):
        open_source(tmp_path, FRAMES)


def test_a_prepared_folder_of_another_rate_or_with_damage_is_refused(prepared, tmp_path):
    with pytest.raises(DataError, match=r"prepared at 16000 Hz, the model works at 32000 Hz.*--sample-rate 32000"):
        open_source(prepared, FRAMES, 32000)
    copied(prepared, tmp_path)
    shard = tmp_path / shards.shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard-000001\.tar: has \d+ bytes, not \d+"):
        open_source(tmp_path, FRAMES)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: is missing"):
        open_source(tmp_path, FRAMES)


@pytest.mark.parametrize("read_before", [False, True])
def test_a_shard_that_shrinks_while_it_is_read_is_named(sounds, tmp_path, read_before):
    prepare([sounds], tmp_path, PrepareSettings())
    source = open_source(tmp_path, FRAMES)
    if read_before:
        source.read(4, rng())
    shard = tmp_path / shards.shard_name(0)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"shard-000000\.tar: 4\.wav there is not what was prepared"):
        source.read(4, rng())


def with_one_bit_flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "zeroed": lambda content, other: bytes(len(content)),
    "zeroed in one page": lambda content, other: content[:4096] + bytes(4096) + content[8192:],
    "of another folder": lambda content, other: other,
    "backwards": lambda content, other: content[::-1],
    "shifted": lambda content, other: content[2:] + content[:2],
    "one bit": lambda content, other: with_one_bit_flipped(content),
}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A prepared folder of two clips of 601 frames in a shard, and another of the same sizes with other values."""
    folders = []
    for seed in range(2):
        sounds, folder = tmp_path_factory.mktemp("sounds"), tmp_path_factory.mktemp("alike")
        for i in range(2):
            soundfile.write(sounds / f"{i}.wav", rng(10 * seed + i).standard_normal(96000) * 0.1, 16000)
        prepare([sounds], folder, PrepareSettings())
        folders.append(folder)
    return folders


def copied(folder, target):
    return shutil.copytree(folder, target, dirs_exist_ok=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_values_that_are_not_those_prepared_are_refused_before_they_are_used(alike, tmp_path, damage):
    folder, other = copied(alike[0], tmp_path), alike[1]
    shard = folder / shards.shard_name(0)
    content = shard.read_bytes()
    changed = DAMAGE[damage](content, (other / shard.name).read_bytes())
    assert len(changed) == len(content)
    shard.write_bytes(changed)
    whole, source = open_source(alike[0], FRAMES), open_source(folder, FRAMES)
    refused = []
    for seed in range(200):
        expected = whole.read(seed % 2, rng(seed))
        try:
            crop = source.read(seed % 2, rng(seed))
        except DataError as error:
            refused.append((seed, str(error)))
        else:
            assert np.array_equal(crop.values, expected.values)
    assert all(f"000.tar: {seed % 2}.wav there is not what was prepared. Copy" in reason for seed, reason in refused)
    assert len(refused) == 200 if damage not in ("zeroed in one page", "one bit") else 0 < len(refused) < 100


@pytest.mark.parametrize("name", [shards.ROWS, shards.CHECKSUMS, shards.FILES])
@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
def test_an_index_that_is_not_what_was_written_is_refused(alike, tmp_path, name, damage):
    path = copied(alike[0], tmp_path) / name
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(DAMAGE[damage](content, content[:-1] + b"7"))
    with pytest.raises(DataError, match=rf"{name}: is missing or not what was prepared\. Copy"):
        open_source(tmp_path, FRAMES)


def test_a_folder_of_the_format_before_is_to_be_prepared_again(alike, tmp_path):
    index = copied(alike[0], tmp_path) / shards.INDEX
    facts = json.loads(index.read_bytes())
    index.write_text(json.dumps({**{name: facts[name] for name in facts if name != "sha256"}, "format": 1}))
    with pytest.raises(DataError, match=r"written with format 1 .* Prepare the audio again, into a new folder"):
        open_source(tmp_path, FRAMES)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((80, 50), np.float32), r"holds float32 \[80, 50\]"),
        (np.zeros((1, 64, 50), np.float32), r"holds float32 \[1, 64, 50\]; a log-mel is float \[1, 80, frames\]"),
        (np.zeros((1, 80, 50), np.int16), "holds int16"),
        (np.zeros((1, 80, 0), np.float32), r"\[1, 80, 0\]"),
        (np.full((1, 80, 50), np.nan, np.float32), "NaN"),
        (np.array([{}]), "not a .npy file that can be read"),
    ],
)
def test_an_array_that_is_no_log_mel_is_named(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    write_list(tmp_path / "files.csv", ["a.npy"])
    with pytest.raises(DataError, match=rf"a\.npy: .*{message}"):
        open_source(tmp_path / "files.csv", FRAMES).read(0, rng())


def test_log_mels_need_known_statistics(arrays):
    source = open_source(arrays / "files.csv", FRAMES)
    with pytest.raises(UsageError, match="measure_norm_stats"):
        source.log_mel(torch.zeros(1, 1, 80, FRAMES))


# --- mean and std


def test_measured_statistics_are_those_of_the_clips_without_padding(arrays):
    source = open_source(arrays / "files.csv", 100)  # longer than any: the crops are the clips
    values = np.concatenate([np.load(arrays / "lms" / f"{i}.npy").astype(np.float64).ravel() for i in range(10)])
    assert measure_norm_stats(source) == pytest.approx((values.mean(), values.std()), rel=1e-9)


def test_measured_statistics_of_sounds_are_those_of_their_prepared_folder(sounds, prepared):
    found = measure_norm_stats(open_source(sounds, 200))
    assert found == pytest.approx(open_source(prepared, 200).norm_stats, abs=0.05)


def test_measuring_takes_no_more_crops_than_asked_for_and_the_same_for_any_workers(arrays):
    source = open_source(arrays / "files.csv", 20)
    some, again, all_ = (
        measure_norm_stats(source, 3),
        measure_norm_stats(source, 3, workers=1),
        measure_norm_stats(source),
    )
    assert some == again != all_


# --- batches


@pytest.mark.parametrize("clips", [256, 250])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (2, 4), (4, 2), (8, 1), (2, 100)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_an_epoch_without_loss_or_repeat(clips, world_size, batch_size, drop_last):
    source, together = Numbers(clips), world_size * batch_size
    single = batches(source, batch_size=together, drop_last=drop_last)
    by_rank = [
        batches(source, batch_size=batch_size, rank=rank, world_size=world_size, drop_last=drop_last)
        for rank in range(world_size)
    ]
    for step, (crops, indices) in enumerate(single):
        parts = [rank[step] for rank in by_rank if step < len(rank)]
        assert torch.equal(torch.cat([part[0] for part in parts]), crops)
        assert torch.equal(torch.cat([part[1] for part in parts]), indices)
    seen = Counter(index for rank in by_rank for _, indices in rank for index in indices.tolist())
    assert set(seen.values()) == {1}
    assert len(seen) == (clips // together * together if drop_last else clips)


def test_every_epoch_and_seed_has_an_order_and_crops_of_its_own():
    source = Numbers(64)
    found = [batches(source, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = {tuple(torch.cat([clips for _, clips in one]).tolist()) for one in found}
    assert len(orders) == 4
    digits = {float(crops[0, 1]) for one in found for crops, _ in one}
    assert len(digits) == 4 * 16
    assert same(batches(source, seed=1, epoch=1), found[3])


@pytest.mark.parametrize("kind", ["prepared", "sounds"])
def test_workers_change_nothing(kind, request):
    source = open_source(request.getfixturevalue(kind), FRAMES)
    settings = {"batch_size": CHUNK + 6, "epoch_clips": 3 * CHUNK, "drop_last": False}
    alone = batches(source, **settings)
    assert [len(clips) for _, clips in alone] == [70, 70, 52]
    assert same(batches(source, workers=2, **settings), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_an_epoch_goes_on_with_the_same_batches(prepared, workers):
    source = open_source(prepared, FRAMES)
    settings = {"batch_size": 3, "epoch_clips": 25, "rank": 1, "world_size": 2}
    whole = batches(source, **settings)
    assert len(whole) == 4
    for start in range(5):
        rest = loader(source, start_batch=start, workers=workers, **settings)
        assert len(rest) == 4 - start
        assert same(pairs(rest), whole[start:])


def test_epochs_in_one_stream_are_those_read_one_by_one():
    source = Numbers(30)
    one_by_one = [batch for epoch in (3, 4, 5) for batch in batches(source, epoch=epoch)]
    stream = loader(source, epoch=3, epochs=3, start_batch=2, workers=2)
    assert len(stream) == len(one_by_one) - 2
    assert same(pairs(stream), one_by_one[2:])


@pytest.mark.parametrize("length", [10, 25, 100, 7])
def test_small_lists_are_repeated_each_clip_equally_often(length):
    found = batches(Numbers(10), batch_size=1, epoch_clips=length)
    counts = Counter(int(clips) for _, clips in found)
    assert sum(counts.values()) == length
    assert max(counts.values()) - min(counts.get(clip, 0) for clip in range(10)) <= 1
    assert len({float(crops[0, 1]) for crops, _ in found}) == length  # other crops each time


def test_repeats_are_spread_over_the_epoch():
    order = torch.cat([clips for _, clips in batches(Numbers(10), epoch_clips=1000)])
    assert sorted(order[:10].tolist()) != list(range(10))
    assert not torch.equal(order[:500], order[500:])


def test_reading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(Numbers(10), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_in_mid_epoch_is_named_at_its_batch(tmp_path, workers):
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.zeros((1, 80, FRAMES), np.float32))
    write_list(tmp_path / "files.csv", [f"{i}.npy" for i in range(8)])
    source = open_source(tmp_path / "files.csv", FRAMES)
    broken = int(batches(source, batch_size=2)[2][1][1])
    (tmp_path / f"{broken}.npy").write_bytes(b"nothing")
    stream = iter(loader(source, batch_size=2, workers=workers))
    next(stream)
    next(stream)
    with pytest.raises(DataError, match=rf"^[^\n]*{broken}\.npy: not a \.npy file[^\n]*$"):
        next(stream)


def break_files(kind, tmp_path, request):
    """What opens a copy of the sources of a kind, in which some files cannot be read; and their numbers."""
    whole = copied(request.getfixturevalue(kind), tmp_path)
    path = whole / "files.csv" if kind == "arrays" else whole
    source = open_source(path, FRAMES)
    bad = range(1, source.n_clips, 3)
    if kind == "prepared":
        rows = np.load(whole / shards.ROWS)
        for clip in bad:
            shard = whole / shards.shard_name(rows[clip]["shard"])
            content, offset = bytearray(shard.read_bytes()), rows[clip]["log_mel"]["offset"]
            content[offset : offset + rows[clip]["log_mel"]["frames"] * 160] = bytes(
                rows[clip]["log_mel"]["frames"] * 160
            )
            shard.write_bytes(content)
    else:
        for name in source.names(bad):
            Path(name).write_bytes(b"nothing")
    return path, set(bad)


KINDS = ["prepared", "arrays", "sounds", "images"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_skipped_for_others_the_same_ones_however_they_are_read(kind, tmp_path, request, caplog):
    path, bad = break_files(kind, tmp_path, request)

    def skipping():
        return open_source(path, FRAMES, on_bad_file="skip")

    settings = {"batch_size": 4, "epoch_clips": 40}
    whole = batches(skipping(), **settings)
    named = [record.message for record in caplog.records if "takes its place" in record.message]
    assert len(named) == len(set(named)) == len(bad)
    assert caplog.messages[-1] == f"{len(bad)} clips could not be read; others took their place."
    assert all(len(values) == 4 for values, _ in whole)
    assert not bad & {int(clip) for _, clips in whole for clip in clips}
    caplog.clear()
    with_workers = skipping()
    assert same(batches(with_workers, workers=2, **settings), whole)
    assert sorted(m for m in caplog.messages if "takes its place" in m) == sorted(named)
    assert len(with_workers.skipped) == len(bad)
    assert same(batches(skipping(), start_batch=4, workers=1, **settings), whole[4:])
    ranks = [
        batches(skipping(), **{**settings, "batch_size": 2}, rank=rank, world_size=2, workers=rank) for rank in (0, 1)
    ]
    together = [(torch.cat([a, b]), torch.cat([i, j])) for (a, i), (b, j) in zip(*ranks, strict=True)]
    assert same(together, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_good_files_are_read_the_same_whether_bad_ones_are_skipped(kind, request):
    folder = request.getfixturevalue(kind)
    path = folder / "files.csv" if kind == "arrays" else folder
    stopping, skipping = (open_source(path, FRAMES, on_bad_file=policy) for policy in ("stop", "skip"))
    assert same(batches(stopping), batches(skipping))
    assert stopping.fingerprint == skipping.fingerprint
    assert skipping.skipped == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_ends_the_reading_unless_told_otherwise(kind, tmp_path, request):
    path, _ = break_files(kind, tmp_path, request)
    with pytest.raises(DataError, match=r"To go on without such files: --on-bad-file skip\.$"):
        batches(open_source(path, FRAMES))


def test_labels_and_subset_of_a_clip_that_takes_the_place_of_another_are_its_own(tmp_path, request):
    path, bad = break_files("sounds", tmp_path, request)
    write_list(tmp_path / "labels.csv", [])
    with (tmp_path / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerows([[f"{i}.wav", str(i)] for i in range(10)])
    source = open_source(path, FRAMES, on_bad_file="skip")
    add_labels(source, tmp_path / "labels.csv")
    part = Subset(source, np.array([1, 2, 3, 4]))
    seen = set()
    for crops in loader(part, epoch_clips=40):
        assert torch.equal(crops.labels.argmax(1), crops.clips + 1)
        seen |= set((crops.clips + 1).tolist())
    assert seen == {2, 3} == {1, 2, 3, 4} - bad
    assert set(source.skipped) == {"1.wav", "4.wav"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tree_none_of_which_can_be_read_any_more_is_an_error(tmp_path, workers):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.full(800, 0.1), 16000)
    source = open_source(tmp_path, FRAMES, on_bad_file="skip")
    for i in range(4):
        (tmp_path / f"{i}.wav").unlink()
    with pytest.raises(DataError, match=r"100 clips in a row cannot be read\. The last: .*\.wav: no such file"):
        batches(source, workers=workers)


def test_a_tree_with_a_folder_that_cannot_be_listed_is_refused_or_said(tmp_path, unlistable, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", np.full(800, 0.1), 16000)
    unlistable("b")
    with pytest.raises(DataError, match=r"b: cannot be listed \(Permission denied\)\. .*--on-bad-file skip"):
        open_source(tmp_path, FRAMES)
    assert open_source(tmp_path, FRAMES, on_bad_file="skip").n_clips == 1
    assert "b: cannot be listed (Permission denied)." in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 11}, "10 clips an epoch do not fill one batch of 1 × 11"),
        ({"batch_size": 3, "world_size": 4}, "one batch of 4 × 3"),
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank is less than world_size"),
        ({"epoch_clips": 0}, "epoch_clips is at least 1"),
        ({"start_batch": 3}, "start_batch=3, but an epoch has 2 batches"),
        ({"workers": -1}, "workers is at least 0"),
    ],
)
def test_misuse_of_the_loader_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        batches(Numbers(10), **settings)


# --- what a batch carries


@pytest.mark.parametrize("kind", ["prepared", "arrays", "sounds"])
def test_a_crop_says_where_in_its_clip_it_starts(kind, request):
    folder = request.getfixturevalue(kind)
    path = folder / "files.csv" if kind == "arrays" else folder
    source, whole = open_source(path, FRAMES), open_source(path, 200)  # 200 frames hold the whole of any clip
    log_mel = whole.spectrogram(torch.from_numpy(whole.read(9, rng()).values.copy())[None])[0].numpy()
    starts = set()
    for seed in range(10):
        crop = source.read(9, rng(seed))
        assert whole.read(9, rng(seed)).start == 0
        found = source.spectrogram(torch.from_numpy(crop.values.copy())[None])[0].numpy()
        inner = slice(2, FRAMES - 2)  # the first and last frames of a cut waveform are padded
        distance = np.abs(log_mel[:, :, crop.start : crop.start + FRAMES] - found)[:, :, inner]
        if kind == "sounds":  # starts between frames, the nearest is said
            others = [
                np.abs(log_mel[:, :, s : s + FRAMES] - found)[:, :, inner].mean() for s in range(121 - FRAMES + 1)
            ]
            assert distance.mean() == min(others)
        else:
            assert distance.max() == 0
        starts.add(crop.start)
    assert len(starts) > 5


def test_labels_of_a_list_come_along_multi_hot_with_their_clips(arrays, prepared, tmp_path):
    cells = ["b", "a, b", "", *["c,a"] * 7]
    for kind, path, pattern in (("list", arrays / "files.csv", "lms/{}.npy"), ("prepared", prepared, "{}.wav")):
        with (tmp_path / f"{kind}.csv").open("w", newline="") as file:
            rows = [[pattern.format(i), cell] for i, cell in enumerate(cells)]
            csv.writer(file).writerows([["file_name", "label"], *rows[::-1]])
        source = open_source(path, FRAMES)
        add_labels(source, tmp_path / f"{kind}.csv")
        assert source.classes == ("a", "b", "c")
        expected = torch.tensor([[0.0, 1, 0], [1, 1, 0], [0, 0, 0], *[[1, 0, 1]] * 7])
        source.norm_stats = (-7.0, 4.0)
        subset = Subset(source, np.array([1, 2, 5]))
        for each, rows in ((source, expected), (subset, expected[[1, 2, 5]])):
            for crops in loader(each, batch_size=3, workers=1):
                batch = each.batch(crops, torch.device("cpu"))
                assert torch.equal(batch.labels, rows[batch.clips])
                assert batch.log_mel.shape == (3, 1, 80, FRAMES)
                assert batch.clean is batch.teacher_features is None
        assert source.fingerprint != open_source(path, FRAMES).fingerprint
        assert open_source(path, FRAMES).labels is None


def test_a_clip_without_labels_is_named(arrays, tmp_path):
    source = open_source(arrays / "files.csv", FRAMES)
    write_list(tmp_path / "labels.csv", ["lms/0.npy"])
    with pytest.raises(DataError, match=r"labels\.csv: has no row for \d of \d+ clips: lms/1\.npy"):
        add_labels(source, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file_name\nlms/0.npy\n")
    with pytest.raises(DataError, match="no column label; it has file_name"):
        add_labels(source, tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("cells", "classes", "says"),
    [
        (["Stör ", "owl,, Sto\u0308r", "owl"], ("Stör", "owl"), ""),
        (["owl", " , ", "wren"], ("owl", "wren"), "1 of 3 clips have no label"),
    ],
)
def test_labels_are_read_as_those_of_tasks_are(tmp_path, caplog, cells, classes, says):
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "label"], *([f"{i}.wav", cell] for i, cell in enumerate(cells))])
    found, rows = read_labels(path, ["0.wav", "1.wav", "2.wav"])
    assert (found, rows.shape) == (classes, (3, 2))
    assert says in caplog.text
    assert bool(says) == bool(caplog.text)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["0.wav,owl", "0.wav,wren"], r"1 clips have two lines of different labels: 0\.wav"),
        (['0.wav,","'], "none of the clips has a label"),
        ([], "nothing below"),
    ],
)
def test_labels_that_contradict_or_are_not_there_are_refused(tmp_path, lines, says):
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *lines]))
    with pytest.raises(DataError, match=says):
        read_labels(tmp_path / "labels.csv", ["0.wav"])


def test_clips_without_labels_carry_none(arrays):
    assert all(crops.labels is None for crops in loader(open_source(arrays / "files.csv", FRAMES)))


class Hanging(Source):
    """A source whose workers cannot end: a thread of theirs waits for ever."""

    n_clips, fingerprint = 8, ""

    def path(self, index):
        return str(index)

    def read(self, index, rng):
        threading.Thread(target=threading.Event().wait).start()
        return Crop(np.zeros((1, 80, FRAMES), np.float32), 0)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [1, 2])
def test_a_worker_that_hangs_does_not_outlive_its_epoch(taken):
    before = multiprocessing.active_children()
    batches = iter(loader(Hanging(), workers=1))
    for _ in range(taken):
        next(batches)
    started = [child for child in multiprocessing.active_children() if child not in before]
    assert started
    list(batches) if taken == 2 else batches.close()
    for child in started:
        child.join(10)
        assert not child.is_alive()
