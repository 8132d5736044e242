"""Clips are embedded once, shard by shard, whatever breaks on the way."""

import errno
import multiprocessing
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from filelock import FileLock

from m2d_bench import audio, tasks
from m2d_bench.errors import DataError, StorageError, UsageError
from m2d_bench.evaluation import embeddings, maps
from m2d_bench.settings import Compute, Storage
from m2d_bench.tasks import contents, dataset
from tests.conftest import small_encoder, write_tones
from tests.tasks import test_published

COMPUTE = Compute(device="cpu", precision="fp32")


@pytest.fixture
def storage(tmp_path, tones):
    return Storage(data=tones, cache=tmp_path)


class Counting:
    """An encoder of another make that counts the clips it is given."""

    sample_rate, hop_ms, scene_embedding_size, timestamp_embedding_size, digest = 8000, 10.0, 2, 2, "counting"

    def __init__(self):
        self.clips = 0

    def scene_embeddings(self, waveform):
        self.clips += len(waveform)
        return torch.stack([waveform.mean(1), waveform.std(1)], dim=1)


def test_embeddings_are_those_of_single_clips(tones):
    storage, encoder = Storage(data=tones), small_encoder()  # the session's cache: other tests take them from there
    data = dataset.load(tasks.get("esc10"), storage)
    found = embeddings.encode(encoder, data, COMPUTE, storage)
    assert found.features.shape == (400, 640)
    for clip in (0, 33, 399):
        alone = encoder.scene_embeddings(data.waveform(clip, 16000))[0]
        assert torch.allclose(found.features[clip], alone, atol=1e-5)


def test_a_second_call_reads_the_cache(storage):
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    first = embeddings.encode(encoder, data, COMPUTE, storage)
    assert encoder.clips == 400
    second = embeddings.encode(encoder, data, COMPUTE, storage)
    assert encoder.clips == 400
    assert torch.equal(first.features, second.features)


def test_a_killed_run_loses_at_most_a_shard(storage, monkeypatch):
    monkeypatch.setattr(embeddings, "_SHARD", 100)
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    scene_embeddings = encoder.scene_embeddings

    def killed(waveform):
        if encoder.clips >= 250:
            raise KeyboardInterrupt
        return scene_embeddings(waveform)

    encoder.scene_embeddings = killed
    with pytest.raises(KeyboardInterrupt):
        embeddings.encode(encoder, data, COMPUTE, storage)
    encoder.scene_embeddings, encoder.clips = scene_embeddings, 0
    embeddings.encode(encoder, data, COMPUTE, storage)
    assert encoder.clips == 200


def test_long_clips_have_a_second_view_for_training(tmp_path):
    write_tones(tmp_path / "esc10")
    soundfile.write(tmp_path / "esc10/audio/7.wav", np.linspace(-0.5, 0.5, 8000 * 8), 8000)
    storage = Storage(data=tmp_path, cache=tmp_path / "cache")
    found = embeddings.encode(Counting(), dataset.load(tasks.get("esc10"), storage), COMPUTE, storage)
    assert len(found.features) == 401
    assert found.crop_rows[7] == 400
    assert found.clips[400] == 7
    assert (found.crop_rows[:7] == torch.arange(7)).all()
    assert not torch.equal(found.features[7], found.features[400])


def test_broken_clips_are_all_named_before_any_is_embedded(tmp_path):
    write_tones(tmp_path / "esc10")
    storage, encoder = Storage(data=tmp_path, cache=tmp_path / "cache"), Counting()
    for clip in (5, 350):
        (tmp_path / f"esc10/audio/{clip}.wav").write_bytes(b"broken")
    data = dataset.load(tasks.get("esc10"), storage)
    with pytest.raises(DataError, match=r"2 of 400 clips.*/5\.wav.*/350\.wav"):
        embeddings.encode(encoder, data, COMPUTE, storage)
    assert encoder.clips == 0


def shuffled(path):
    np.save(path, np.load(path)[::-1])


def retyped(path):
    np.save(path, np.load(path).astype(np.float64))


def infinite(path):
    array = np.load(path)
    array[0] = np.inf
    np.save(path, array)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def emptied(path):
    path.write_bytes(b"")


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object))


def replaced(path):
    path.write_bytes(path.with_name("00003.npy").read_bytes())


@pytest.mark.parametrize("damage", [shuffled, retyped, infinite, flipped, cut, emptied, pickled, replaced])
def test_damaged_shards_are_remade_and_said_once(storage, damage, caplog):
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    whole = embeddings.encode(encoder, data, COMPUTE, storage).features
    assert not caplog.records
    first, second, *_ = sorted(storage.cache_root.rglob("*.npy"))
    assert np.array_equal(np.load(first), whole[:64])
    damage(first)
    damage(second)
    encoder.clips = 0
    assert torch.equal(embeddings.encode(encoder, data, COMPUTE, storage).features, whole)
    assert encoder.clips == 128
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["2 shards are remade."]
    assert torch.equal(embeddings.encode(encoder, data, COMPUTE, storage).features, whole)
    assert encoder.clips == 128


def test_embeddings_that_are_not_finite_are_not_stored(storage):
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    encoder.scene_embeddings = lambda waveform: torch.full((len(waveform), 2), torch.nan)
    with pytest.raises(DataError, match=r"NaN or infinity for .*audio/0\.wav"):
        embeddings.encode(encoder, data, COMPUTE, storage)
    assert not list(storage.cache_root.rglob("*.npy"))


class Slow(Counting):
    """Takes its time, as encoders do."""

    seconds = 0.05

    def scene_embeddings(self, waveform):
        time.sleep(self.seconds)
        return super().scene_embeddings(waveform)


def counted(storage, results):
    encoder = Slow()
    embeddings.encode(encoder, dataset.load(tasks.get("esc10"), storage), COMPUTE, storage)
    results.put(encoder.clips)


def test_processes_that_share_a_cache_encode_each_shard_once(storage):
    context = multiprocessing.get_context("fork")
    results, encoder = context.Queue(), Counting()
    processes = [context.Process(target=counted, args=(storage, results)) for _ in range(3)]
    for process in processes:
        process.start()
    counts = [results.get(timeout=60) for _ in processes]
    assert sum(counts) == 400
    assert sorted(counts)[1] > 0
    embeddings.encode(encoder, dataset.load(tasks.get("esc10"), storage), COMPUTE, storage)
    assert encoder.clips == 0


def test_a_killed_process_blocks_no_other(storage, monkeypatch):
    monkeypatch.setattr(Slow, "seconds", 600)
    process = multiprocessing.get_context("fork").Process(target=counted, args=(storage, None))
    process.start()
    while not list(storage.cache_root.rglob("00000.lock")):
        time.sleep(0.01)
    process.kill()
    encoder = Counting()
    embeddings.encode(encoder, dataset.load(tasks.get("esc10"), storage), COMPUTE, storage)
    assert encoder.clips == 400


def test_a_shard_that_another_process_is_encoding_is_left_for_last(storage, monkeypatch):
    data, encoder, order = dataset.load(tasks.get("esc10"), storage), Counting(), []
    folder = storage.cache_root / "embeddings" / encoder.digest / embeddings._key(embeddings.wrap(encoder), data)
    folder.mkdir(parents=True)
    other = FileLock(folder / "00001.lock", thread_local=False)
    other.acquire()
    encode_shard = embeddings._encode_shard

    def watched(*arguments):
        order.append(arguments[2].path.stem)
        if len(order) == 6:  # all but the one that is locked
            other.release()
        encode_shard(*arguments)

    monkeypatch.setattr(embeddings, "_encode_shard", watched)
    embeddings.encode(encoder, data, COMPUTE, storage)
    assert order == ["00000", "00002", "00003", "00004", "00005", "00006", "00001"]


@pytest.mark.parametrize("refusal", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_serves_what_it_has(storage, monkeypatch, refusal):
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    whole = embeddings.encode(encoder, data, COMPUTE, storage).features

    def refused(*_, **__):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr("m2d_bench.settings.replacing", refused)
    data = dataset.load(tasks.get("esc10"), storage)
    assert torch.equal(embeddings.encode(encoder, data, COMPUTE, storage).features, whole)
    encoder.digest = "another"
    with pytest.raises(StorageError, match=f"{re.escape(str(storage.cache_root))}: .*MiB.*--cache"):
        embeddings.encode(encoder, data, COMPUTE, storage)


def test_embeddings_too_large_for_the_memory_lie_in_a_file_that_leaves_nothing(storage, monkeypatch, caplog):
    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    in_memory = embeddings.encode(encoder, data, COMPUTE, storage).features
    files = sorted(storage.cache_root.rglob("*"))
    monkeypatch.setattr(maps, "LARGE", 1000)
    mapped = embeddings.encode(encoder, data, COMPUTE, storage).features
    assert torch.equal(mapped, in_memory)
    assert "0.0 GB of embeddings lie in one file" in caplog.text
    assert sorted(storage.cache_root.rglob("*")) == files
    assert encoder.clips == 400
    if (regions := Path("/proc/self/maps")).exists():
        starts = [int(line.split("-")[0], 16) for line in regions.read_text().splitlines() if "(deleted)" in line]
        assert mapped.data_ptr() in starts


def test_a_disk_that_cannot_hold_large_embeddings_is_an_error_before_any_is_made(storage, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data, encoder = dataset.load(tasks.get("esc10"), storage), Counting()
    monkeypatch.setattr(maps, "LARGE", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"the disk is full.* 0\.0 MiB are to be written.*--cache"):
        embeddings.encode(encoder, data, COMPUTE, storage)
    assert encoder.clips == 0


def test_other_precision_is_other_cache(storage):
    data, encoder = dataset.load(tasks.get("esc10"), storage), small_encoder()
    first = embeddings._key(encoder, data)
    encoder.precision = "bf16"
    assert embeddings._key(encoder, data) != first


def test_files_of_any_length_and_rate_are_embedded_as_if_alone(tmp_path):
    encoder, files = small_encoder(), []
    rng = np.random.default_rng(0)
    for i, (rate, seconds) in enumerate([(16000, 3.0), (44100, 0.3), (8000, 12.0), (16000, 0.025)]):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], 0.1 * rng.standard_normal(round(rate * seconds)), rate)
    (tmp_path / "broken.wav").write_bytes(b"x")
    done, scenes, failures = embeddings.embed_files(encoder, [*files, tmp_path / "broken.wav"], COMPUTE)
    assert done == files
    assert len(failures) == 1
    assert "broken.wav" in failures[0]
    for file, scene in zip(files, scenes, strict=True):
        alone = encoder.scene_embeddings(audio.read(file, 16000))[0].numpy()
        assert np.allclose(scene, alone, atol=1e-5)


class Fragile:
    """Gives NaN for a clip that holds exact zeros."""

    sample_rate = 16000

    def scene_embeddings(self, waveform):
        quiet = (waveform == 0).any(1, keepdim=True)
        return torch.where(quiet, torch.nan, torch.cat([waveform.mean(1, True), waveform.std(1, keepdim=True)], 1))


@pytest.mark.parametrize(("memory", "bounded"), [(2e9, False), (1, True)])
def test_sounds_that_take_much_memory_are_not_decoded_far_ahead(storage, monkeypatch, memory, bounded):
    begun, most, read = [], [], audio.read
    monkeypatch.setattr(audio, "read", lambda *words, **options: begun.append(1) or read(*words, **options))
    monkeypatch.setattr(embeddings, "_MEMORY", memory)

    class Watching(Counting):
        def scene_embeddings(self, waveform):
            time.sleep(0.3 if not self.clips else 0)
            most.append(len(begun) - self.clips)
            return super().scene_embeddings(waveform)

    compute = replace(COMPUTE, batch_size=2, jobs=1)
    embeddings.encode(Watching(), dataset.load(tasks.get("esc10"), storage), compute, storage)
    assert (most[0] <= 3) == bounded
    begun.clear(), most.clear()
    embeddings.embed_files(Watching(), sorted((storage.data_root / "esc10" / "audio").iterdir())[:9], compute)
    assert (most[0] <= 3) == bounded


def test_a_clip_whose_embedding_is_not_finite_is_named_and_takes_no_other_with_it(tmp_path):
    files = [tmp_path / f"{i}.wav" for i in range(5)]
    for i, file in enumerate(files):
        soundfile.write(file, (i not in (1, 4)) * (0.1 + 0.1 * i) * np.ones(16000), 16000, subtype="FLOAT")
    done, scenes, failures = embeddings.embed_files(Fragile(), files, COMPUTE)
    assert done == [files[0], files[2], files[3]]
    assert np.allclose(scenes[:, 0], [0.1, 0.3, 0.4])
    assert [failure.split(" for ")[1].split(";")[0].rstrip(".") for failure in failures] == [
        str(files[1]),
        str(files[4]),
    ]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_written_embeddings_are_read_back(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    scenes = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / f"out{suffix}"
    embeddings.write_embeddings(path, [Path("a.wav"), Path("b.wav")], scenes, small_encoder())
    if suffix == ".npz":
        found = np.load(path)
        names, values = found["files"].tolist(), found["embeddings"]
    else:
        table = pd.read_parquet(path)
        names, values = table["file"].tolist(), np.stack(table["embedding"])
    assert names == ["a.wav", "b.wav"]
    assert np.array_equal(values, scenes)
    assert len(list(tmp_path.iterdir())) == 1


def test_names_that_are_not_utf8_are_written(tmp_path):
    pytest.importorskip("pyarrow")
    names = [Path(os.fsdecode(b"\xe9.wav")), Path("\u00e9.wav")]
    for suffix in (".npz", ".parquet"):
        embeddings.write_embeddings(tmp_path / f"out{suffix}", names, np.zeros((2, 3)), small_encoder())
    assert np.load(tmp_path / "out.npz")["files"].tolist() == [str(name) for name in names]
    assert pd.read_parquet(tmp_path / "out.parquet")["file"].tolist() == ["\\xe9.wav", "\u00e9.wav"]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
        embeddings.write_embeddings(tmp_path / "out.csv", [], np.zeros((0, 3)), small_encoder())


@pytest.fixture
def huge(tmp_path, monkeypatch):
    """AudioSet's layout with seven clips of a tenth of a second, the third longer; shards of two, read one by one."""
    monkeypatch.setattr(embeddings, "_SHARD", 2)
    monkeypatch.setattr(embeddings, "_PART", 2)
    monkeypatch.setattr(contents, "_SETTLED", -(10**9))
    files = sorted(test_published.as2m(tmp_path))
    soundfile.write(tmp_path / "AudioSet" / files[2], np.linspace(-0.5, 0.5, 4800), 16000)
    return Storage(data=tmp_path, cache=tmp_path / "cache")


def unread(storage, **changes):
    return dataset.find_all(replace(tasks.get("as2m"), clip_seconds=0.1, **changes), storage)


def streamed(storage, encoder):
    """Embeddings of a huge set as an evaluation makes them."""
    data = unread(storage)
    embeddings.encode_unread(encoder, data, COMPUTE, storage)
    clips = encoder.clips
    found = embeddings.encode(encoder, data.readable("skip"), COMPUTE, storage)
    assert encoder.clips == clips  # all are in the cache
    return found


def test_a_huge_set_is_embedded_while_it_is_read(huge, monkeypatch):
    read, encoder, inspect = [], Counting(), audio.inspect
    monkeypatch.setattr(audio, "inspect", lambda path: read.append(path) or inspect(path))
    started = []
    scene_embeddings = encoder.scene_embeddings
    encoder.scene_embeddings = lambda waveform: started.append(len(read)) or scene_embeddings(waveform)
    found = streamed(huge, encoder)
    assert started[0] < len(read) == 7
    plain = embeddings.encode(Counting(), unread(huge, n_clips=7), COMPUTE, huge)
    for part in ("features", "clips", "crop_rows"):
        assert torch.equal(getattr(found, part), getattr(plain, part)), part


def test_a_huge_set_that_is_killed_is_read_and_embedded_on(huge, monkeypatch):
    encoder, read, inspect = Counting(), [], audio.inspect
    scene_embeddings = encoder.scene_embeddings

    def killed(waveform):
        if encoder.clips >= 4:
            raise KeyboardInterrupt
        return scene_embeddings(waveform)

    encoder.scene_embeddings = killed
    with pytest.raises(KeyboardInterrupt):
        streamed(huge, encoder)
    encoder.scene_embeddings, encoder.clips = scene_embeddings, 0
    monkeypatch.setattr(audio, "inspect", lambda path: read.append(path) or inspect(path))
    embeddings.encode_unread(encoder, unread(huge), COMPUTE, huge)
    embeddings.encode(encoder, unread(huge), COMPUTE, huge)
    assert encoder.clips == 4
    assert len(read) <= 3


def test_an_edit_of_a_huge_set_costs_a_shard_and_a_broken_clip_its_own(huge):
    first = streamed(huge, encoder := Counting())
    assert (encoder.clips, len(first.features)) == (8, 8)
    files = unread(huge).files
    soundfile.write(huge.data_root / "AudioSet" / files[0], 0.5 * np.ones(1600), 16000)
    assert len(streamed(huge, encoder := Counting()).features) == 8
    assert encoder.clips == 2
    (huge.data_root / "AudioSet" / files[0]).write_bytes(b"no sound")
    again = streamed(huge, encoder := Counting())
    assert encoder.clips == 1  # the other one of its shard
    assert torch.equal(again.features, first.features[1:])


def test_a_part_of_a_huge_set_may_hold_broken_clips_alone(huge):
    for file in unread(huge).files[:2]:
        (huge.data_root / "AudioSet" / file).write_bytes(b"no sound")
    assert len(streamed(huge, Counting()).crop_rows) == 5
