"""Sound files become shards: the right values, the same bytes whatever happens, and no file lost in silence."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from m2d_bench import audio, cli
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import DataError, UsageError
from m2d_bench.pretrain.data import parts, shards
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.verbs import prepare as verb

SMALL = PrepareSettings(shard_mb=0.05, jobs=2)


def write_sounds(root, count=24, seconds=0.5, rate=16000):
    """Noise of several loudnesses and lengths in two subfolders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / f"sub.{i % 2}" / f"clip {i:03d}.{('wav', 'flac')[i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = rng.standard_normal(round(rate * (seconds + 0.01 * i))) * 0.3 * rng.random()
        soundfile.write(path, wave, rate)
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def prepared(sounds, tmp_path_factory):
    return prepare([sounds], tmp_path_factory.mktemp("prepared"), SMALL)


def contents(folder):
    """Every file and its bytes, but for hidden ones."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}


def clips(folder):
    """Path and array of each clip, found by the index's byte offsets."""
    files = list(shards.read_files(folder))
    for row in np.load(folder / shards.ROWS):
        size = row["log_mel"]["frames"] * 160
        data = (folder / shards.shard_name(row["shard"])).read_bytes()[row["log_mel"]["offset"] :][:size]
        yield files[row["file"]], np.frombuffer(data, np.float16).reshape(-1, 80)


def failures_csv(folder):
    with (folder / shards.FAILURES).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))[1:]


def log_mel_of(path, rate=16000):
    return LogMel(rate)(torch.from_numpy(audio.read(path, rate))[None])[0, 0].numpy()


def test_values_are_the_front_end_s_to_float16_and_time_major(sounds, prepared):
    found = dict(clips(prepared.folder))
    assert len(found) == 24
    for path, values in found.items():
        expected = log_mel_of(sounds / path)
        assert values.shape == expected.T.shape
        np.testing.assert_allclose(values.T.astype(np.float32), expected, rtol=2**-10, atol=1e-3)


def test_a_member_of_a_shard_is_the_same_array(prepared):
    by_index = [values for _, values in clips(prepared.folder)]
    by_tar = []
    for shard in sorted(prepared.folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            by_tar += [np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar]
    assert len(by_tar) == len(by_index)
    assert all(np.array_equal(one, other) for one, other in zip(by_tar, by_index, strict=True))


def test_statistics_are_those_of_all_values(prepared):
    values = np.concatenate([values.ravel() for _, values in clips(prepared.folder)]).astype(np.float64)
    exact = sum(map(Fraction, values.tolist())) / len(values)
    assert prepared.index.mean == float(exact)
    assert prepared.index.std == pytest.approx(values.std(), rel=1e-12)
    assert prepared.index.n_frames * 80 == len(values)


def test_statistics_do_not_depend_on_the_order_of_adding():
    rng = np.random.default_rng(0)
    blocks = [rng.normal(-7, 4, (50, 80)).astype(np.float16) for _ in range(20)] + [np.float16([65504, -65504, 6e-8])]

    def measured(order):
        found = []
        for block in order:
            histogram = shards.Histogram()
            histogram.add(block)
            found.append(histogram.sums())
        return shards.mean_and_std(found)

    assert measured(blocks) == measured(blocks[::-1])
    together = shards.Histogram()
    for block in blocks:
        together.add(block)
    assert shards.mean_and_std([together.sums()]) == measured(blocks)


def test_shards_have_about_the_size_asked_for(prepared):
    assert len(prepared.index.shard_bytes) > 3
    for size in prepared.index.shard_bytes[:-1]:
        assert 50_000 <= size <= 50_000 + 20_480 + 75 * 160
    assert prepared.index.shard_bytes == tuple(p.stat().st_size for p in sorted(prepared.folder.glob("*.tar")))


def test_the_number_of_jobs_changes_no_byte(sounds, prepared, tmp_path):
    for jobs in (1, 3):
        prepare([sounds], tmp_path / str(jobs), PrepareSettings(shard_mb=0.05, jobs=jobs))
        assert contents(tmp_path / str(jobs)) == contents(prepared.folder)


def test_the_number_of_threads_torch_was_given_stays_and_changes_no_byte(sounds, prepared, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        prepare([sounds], tmp_path, SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path) == contents(prepared.folder)


def test_webdataset_reads_a_shard(prepared):
    webdataset = pytest.importorskip("webdataset")
    shard = prepared.folder / shards.shard_name(0)
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    expected = [
        values
        for (_, values), row in zip(clips(prepared.folder), np.load(prepared.folder / shards.ROWS), strict=True)
        if row["shard"] == 0
    ]
    assert len({sample["__key__"] for sample in samples}) == len(samples) == len(expected)
    assert all(np.array_equal(sample["npy"], values) for sample, values in zip(samples, expected, strict=True))


def test_keys_are_unique_and_fit_a_tar_header():
    paths = ["a/b.wav", "a_b.wav", "a.b.wav", "ä" * 300, "x" * 300 + ".flac"]
    keys = [shards.key(number, path) for number, path in enumerate(paths)]
    assert len(set(keys)) == len(keys)
    assert all("." not in name and len(name) <= 95 for name in keys)
    assert keys[0] == "00000000-a_b_wav"


@pytest.mark.parametrize("nth", range(1, 16))
def test_a_run_that_stops_at_any_replacement_goes_on_to_the_same_bytes(sounds, prepared, tmp_path, monkeypatch, nth):
    calls, replace = [], os.replace

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return replace(*arguments)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare([sounds], tmp_path, SMALL)
    assert not (tmp_path / shards.INDEX).exists()
    monkeypatch.undo()
    prepare([sounds], tmp_path, SMALL)
    assert contents(tmp_path) == contents(prepared.folder)


@pytest.mark.slow
def test_a_killed_run_keeps_its_finished_shards_and_goes_on_to_the_same_bytes(tmp_path):
    sounds = write_sounds(tmp_path / "sounds", count=400, seconds=1.0)
    code = (
        "import sys; from pathlib import Path\n"
        "from m2d_bench.pretrain.data.prepare import prepare\n"
        "from m2d_bench.pretrain.data.parts import PrepareSettings\n"
        "prepare([Path(sys.argv[1])], Path(sys.argv[2]), PrepareSettings(shard_mb=0.5, jobs=1))"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(sounds), str(out)])
    third = out / parts.UNFINISHED / f"{shards.shard_name(2)}.json"
    deadline = time.monotonic() + 60
    while not third.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / shards.INDEX).exists()
    kept = {name: (out / name).stat().st_mtime_ns for name in map(shards.shard_name, range(3))}
    settings = PrepareSettings(shard_mb=0.5, jobs=2)
    prepare([sounds], out, settings)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    prepare([sounds], tmp_path / "at once", settings)
    assert contents(out) == contents(tmp_path / "at once")
    assert not list(out.glob(".*.tmp"))


def test_a_finished_folder_is_left_as_it_is(sounds, prepared, monkeypatch):
    monkeypatch.setattr(audio, "read", None)
    before = contents(prepared.folder)
    assert prepare([sounds], prepared.folder, SMALL) == prepared
    assert contents(prepared.folder) == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_files_than_those_begun_with_are_refused_by_name(tmp_path, finished, monkeypatch):
    sounds, out = write_sounds(tmp_path / "sounds", count=4), tmp_path / "out"
    prepare([sounds], out, SMALL)
    if not finished:
        (out / parts.UNFINISHED).mkdir()
        (out / shards.INDEX).rename(out / parts.UNFINISHED / "plan.json")
    (sounds / "sub.0" / "clip 000.wav").rename(sounds / "other.wav")
    with (sounds / "sub.1" / "clip 001.flac").open("ab") as file:
        file.write(b"more")
    with pytest.raises(
        UsageError, match=r"1 new \(other.wav\); 1 gone \(sub.0/clip 000.wav\); 1 changed in size \(sub.1"
    ):
        prepare([sounds], out, SMALL)


def test_other_settings_than_those_begun_with_are_refused(sounds, prepared):
    with pytest.raises(UsageError, match=r"sample_rate=16000 \(now 32000\), hop_length=160 \(now 320\)"):
        prepare([sounds], prepared.folder, PrepareSettings(shard_mb=0.05, sample_rate=32000))


def test_shards_of_another_make_are_not_overwritten(sounds, tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"shard-000000\.tar"):
        prepare([sounds], tmp_path, SMALL)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"precious"


def test_two_processes_do_not_prepare_the_same_folder(sounds, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".prepare.lock"), pytest.raises(UsageError, match="another process"):
        prepare([sounds], tmp_path, SMALL)


def test_broken_files_are_listed_and_the_others_written(tmp_path, capsys):
    sounds = write_sounds(tmp_path / "sounds", count=6)
    (sounds / "broken.wav").write_bytes(b"RIFF of nothing")
    (sounds / "zz empty.wav").write_bytes(b"")
    (sounds / "gone.flac").symlink_to("nowhere")
    soundfile.write(sounds / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    soundfile.write(sounds / "huge.wav", np.full(800, 1e30), 16000, subtype="FLOAT")
    for _ in range(2):  # the second time from what is written
        output = verb((sounds, tmp_path / "out"), settings=SMALL)
        assert "6 clips" in output.text
        named = [failure.split(":")[0] for failure in output.failures]
        assert named == ["broken.wav", "gone.flac", "huge.wav", "nan.wav", "zz empty.wav"]
    table = dict(failures_csv(tmp_path / "out"))
    assert list(table) == named
    assert "no such file" in table["gone.flac"]
    assert len(dict(clips(tmp_path / "out"))) == 6


def test_folders_that_cannot_be_listed_are_named_and_the_others_written(tmp_path, unlistable):
    sounds = write_sounds(tmp_path / "sounds", count=6)
    (sounds / "deep" / "shut").mkdir(parents=True)
    unlistable("sub.1", "shut")
    for _ in range(2):  # the second time from what is written
        output = verb((sounds, tmp_path / "out"), settings=SMALL)
        assert "3 clips" in output.text
        reason = "cannot be listed (Permission denied)."
        assert output.failures == (f"deep/shut: {reason}", f"sub.1: {reason}")
        assert failures_csv(tmp_path / "out") == [["deep/shut", reason], ["sub.1", reason]]
    with pytest.raises(DataError, match=r"no sound files.*sub\.1: cannot be listed \(Permission denied\)"):
        prepare([sounds / "sub.1"], tmp_path / "none", SMALL)


def test_names_that_a_spreadsheet_would_compute_are_defused_for_people_and_kept_for_the_command(tmp_path):
    write_sounds(tmp_path / "sounds", count=1)
    names = ["+1-1.wav", "-a.flac", "=cmd.wav", "@x.wav"]
    for name in names:
        (tmp_path / "sounds" / name).write_bytes(b"nothing")
    for _ in range(2):  # the second time from what is written
        index = prepare([tmp_path / "sounds"], tmp_path / "out", SMALL).index
        assert [path for path, _ in index.failures] == names
        assert [path for path, _ in failures_csv(tmp_path / "out")] == [f"'{name}" for name in names]
    assert list(shards.read_files(tmp_path / "out"))[:4] == names


@pytest.mark.parametrize("memory_gb", [1e-9, 4e-4])
def test_long_files_are_decoded_one_by_one_where_memory_is_scarce(sounds, prepared, tmp_path, monkeypatch, memory_gb):
    reading, most, lock, read = [0.0], [], threading.Lock(), audio.read

    def counted(path, *arguments, **settings):
        taken = audio.memory_to_read(path)
        with lock:
            reading.append(taken)
            most.append((len(reading) - 1, sum(reading)))
        try:
            return read(path, *arguments, **settings)
        finally:
            with lock:
                reading.remove(taken)

    monkeypatch.setattr(audio, "read", counted)
    prepare([sounds], tmp_path, PrepareSettings(shard_mb=0.05, jobs=4, memory_gb=memory_gb))
    assert contents(tmp_path) == contents(prepared.folder)
    assert all(files == 1 or together <= memory_gb * 1e9 for files, together in most)


def test_damaged_files_stop_no_shard_and_what_is_no_sound_is_counted(tmp_path, caplog):
    sounds = write_sounds(tmp_path / "sounds", count=6)
    rng = np.random.default_rng(0)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(sounds / f"whole.{suffix}", 0.1 * rng.standard_normal(32000), 16000)
        content = (sounds / f"whole.{suffix}").read_bytes()
        (sounds / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        for number in range(6):
            changed = np.frombuffer(content, np.uint8).copy()
            at = rng.integers(0, 200 if number % 2 else len(content), 4)
            changed[at] = rng.integers(0, 256, 4)
            (sounds / f"{number}.{suffix}").write_bytes(changed.tobytes())
    (sounds / "sub.1" / "left.m4a").write_bytes(b"no sound")
    done = prepare([sounds], tmp_path / "out", SMALL)
    failed = {path for path, _ in done.index.failures}
    assert {f"cut.{suffix}" for suffix in ("wav", "flac", "ogg", "mp3", "aiff")} <= failed
    written = dict(clips(tmp_path / "out"))
    assert len(written) + len(failed) == 6 + 5 * 8
    assert sum(path.startswith(("sub", "whole")) for path in written) == 6 + 5
    assert all(np.isfinite(values).all() for values in written.values())
    assert "files left out, no sound by their suffix: 1 .m4a" in caplog.text


def test_broken_files_behind_the_last_shard_make_none_of_their_own(tmp_path):
    write_sounds(tmp_path, count=2)
    (tmp_path / "zz.wav").write_bytes(b"nothing")
    done = prepare([tmp_path], tmp_path / "out", PrepareSettings(shard_mb=0.001))
    assert len(done.index.shard_bytes) == len(list((tmp_path / "out").glob("*.tar"))) == 2
    assert [path for path, _ in done.index.failures] == ["zz.wav"]


def test_files_none_of_which_can_be_read_are_an_error(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 1 files can be read"):
        prepare([tmp_path], tmp_path / "out", SMALL)
    assert "broken.wav" in (tmp_path / "out" / shards.FAILURES).read_text()


def test_many_failures_are_counted_where_they_are_not_named(tmp_path):
    write_sounds(tmp_path, count=1)
    for i in range(25):
        (tmp_path / f"{i:02d}.mp3").write_bytes(b"")
    failures = verb((tmp_path, tmp_path / "out"), settings=SMALL).failures
    assert len(failures) == 21
    assert "5 more" in failures[-1]
    assert len(failures_csv(tmp_path / "out")) == 25


def test_suffixes_count_in_any_case_and_hidden_files_and_loops_of_links_do_not(tmp_path):
    sounds = tmp_path / "sounds"
    write_sounds(sounds, count=1)
    (sounds / "sub.0" / "clip 000.wav").rename(sounds / "LOUD.WAV")
    (sounds / "._LOUD.wav").write_bytes(b"of another system")
    (sounds / "notes.txt").write_text("no sound")
    (sounds / "sub.0" / "loop").symlink_to(sounds)
    prepare([sounds], tmp_path / "out", SMALL)
    assert list(shards.read_files(tmp_path / "out")) == ["LOUD.WAV"]


def test_several_trees_are_named_by_what_tells_them_apart_and_each_file_counts_once(tmp_path):
    for name in "ab":
        write_sounds(tmp_path / name, count=2)
    prepare([tmp_path / "a", tmp_path / "b", tmp_path / "b" / "sub.0"], tmp_path / "out", SMALL)
    files = list(shards.read_files(tmp_path / "out"))
    assert files == [f"{tree}/sub.{i}/clip 00{i}.{s}" for tree in "ab" for i, s in enumerate(("wav", "flac"))]


def test_long_files_are_kept_whole_unless_a_limit_is_given(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).standard_normal(44100 * 7) * 0.1, 44100)
    whole = prepare([tmp_path], tmp_path / "whole", SMALL)
    cut = prepare([tmp_path], tmp_path / "cut", PrepareSettings(max_seconds=2.0))
    assert (whole.index.n_frames, cut.index.n_frames) == (701, 201)


def test_32_khz_has_frames_as_long(tmp_path):
    write_sounds(tmp_path, count=1, rate=32000)
    index = prepare([tmp_path], tmp_path / "out", PrepareSettings(sample_rate=32000)).index
    assert (index.sample_rate, index.hop_length, index.n_frames) == (32000, 320, 51)


def test_names_that_are_not_utf8_are_kept(tmp_path):
    write_sounds(tmp_path, count=1)
    name = os.fsencode(tmp_path) + b"/\xff,\n.wav"
    with open(name, "wb") as file:
        file.write(b"nothing")
    failures = prepare([tmp_path], tmp_path / "out", SMALL).index.failures
    assert [os.fsencode(path) for path, _ in failures] == [b"\xff,\n.wav"]
    files = shards.read_files(tmp_path / "out")
    assert [(os.fsencode(path), size) for path, size in files.items()][1] == (b"\xff,\n.wav", 7)


def test_the_fingerprint_tells_other_sounds_apart(sounds, prepared, tmp_path):
    again = write_sounds(tmp_path / "again")
    assert prepare([again], tmp_path / "same", SMALL).index.fingerprint == prepared.index.fingerprint
    path = again / "sub.0" / "clip 000.wav"
    soundfile.write(path, soundfile.read(path)[0] * 0.5, 16000)  # as many bytes
    assert prepare([again], tmp_path / "other", SMALL).index.fingerprint != prepared.index.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 44100}, "sample_rate is 44100; it should be 16000 or 32000"),
        ({"jobs": -1}, "jobs is -1; it should be greater than or equal to 0"),
        ({"shard_mb": 0}, "shard_mb"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        PrepareSettings(**settings)


def test_of_a_task_the_files_that_are_not_tested_are_written(sounds, prepared, tmp_path, capsys):
    files = [str(path.relative_to(sounds)) for path in sorted(sounds.rglob("*.*")) if path.is_file()]
    splits = ["test" if number % 3 == 0 else "train" for number in range(len(files))]
    lines = [f"{file},{number % 2},{split}" for number, (file, split) in enumerate(zip(files, splits, strict=True))]
    (tmp_path / "clips.csv").write_text("\n".join(["file_name,label,split", *lines, "gone.wav,0,train"]))
    words = [f"task:{tmp_path / 'clips.csv'}", str(tmp_path / "out"), "--data", str(sounds)]
    assert cli.main(["prepare", *words, "--cache", str(tmp_path / "cache")]) == 1
    assert "ERROR: gone.wav: no such file." in capsys.readouterr().err
    trained = {file for file, split in zip(files, splits, strict=True) if split == "train"}
    whole, found = dict(clips(prepared.folder)), dict(clips(tmp_path / "out"))
    assert found.keys() == trained
    assert all(np.array_equal(found[file], whole[file]) for file in trained)
    with pytest.raises(UsageError, match="Unknown task 'event'"):
        prepare([Path("task:event")], tmp_path / "none", SMALL)


def test_folders_without_sounds_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        prepare([tmp_path / "nowhere"], tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="no sound files"):
        prepare([tmp_path], tmp_path / "out", SMALL)
    with pytest.raises(UsageError, match="then the folder to write"):
        verb((tmp_path,))


def test_an_index_of_another_version_is_refused(prepared, tmp_path):
    facts = json.loads((prepared.folder / shards.INDEX).read_bytes())
    (tmp_path / shards.INDEX).write_text(json.dumps({**facts, "front_end": shards.FRONT_END + 1}))
    with pytest.raises(DataError, match="front end 2; this version reads"):
        shards.Index.read(tmp_path)


def test_the_command_line_prepares(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "prepare", ("m2d_bench.pretrain.verbs:prepare", "Prepare."))
    write_sounds(tmp_path / "sounds", count=2)
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"nothing")
    arguments = [
        "prepare",
        str(tmp_path / "sounds"),
        str(tmp_path / "out"),
        "--sample-rate",
        "32000",
        "--max-seconds",
        "0.3",
    ]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert "2 clips" in printed.out
    assert "ERROR: broken.wav: cannot be decoded" in printed.err
