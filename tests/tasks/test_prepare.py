"""`tasks prepare` copies a published data set at one rate: nothing but the samples' rate and format is another."""

import errno
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from m2d_bench import audio
from m2d_bench.cli import main
from m2d_bench.errors import StorageError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset, prepare
from m2d_bench.tasks.prepare import PrepareSettings
from tests.conftest import write_tones
from tests.tasks.test_dataset import LAYOUT, ROWS, tiny_task, write_task
from tests.tasks.test_generated import TASK as GENERATED
from tests.tasks.test_published import LAYOUTS, fitted


@pytest.fixture
def settings(tmp_path):
    """Four clips of 8 kHz, and where their copies go."""
    write_task(tmp_path / "data", ROWS, seconds=[1.0, 0.5, 2.0, 1.0])
    return PrepareSettings(data=tmp_path / "data", cache=tmp_path / "cache", to=tmp_path / "copies")


def copies(settings):
    return dataset.find(tiny_task(), replace(settings, data=settings.to))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_copies_of_every_published_layout_are_the_same_clips(tmp_path, monkeypatch, name):
    task = fitted(monkeypatch, name, LAYOUTS[name](tmp_path / "data"))
    storage = {"data": tmp_path / "data", "cache": tmp_path / "cache"}
    done = prepare.prepare(task, PrepareSettings(**storage, sample_rate=8000))
    assert done.to == tmp_path / "data-8k"
    found, copied = (dataset.load(task, Storage(**storage | {"data": data})) for data in (tmp_path / "data", done.to))
    assert (done.files, done.failures) == (len({*found.files}), ())
    assert (copied.files, copied.classes, copied.splits.tolist()) == (found.files, found.classes, found.splits.tolist())
    assert np.array_equal(copied.labels, found.labels)
    assert np.array_equal(copied.spans, found.spans)
    assert {(sound.sample_rate, sound.channels) for sound in copied.clip_contents} == {(8000, 1)}
    whole = task.clip_seconds > found.seconds.max() and not task.fade_seconds
    for clip in range(0, len(found.files), 4):
        assert copied.crop_place(clip) == found.crop_place(clip)
        if whole and found.span_name(clip) == "":
            np.testing.assert_allclose(copied.waveform(clip, 8000), found.waveform(clip, 8000), atol=2**-23)


@pytest.mark.parametrize(
    ("kind", "encoding", "step"),
    [("flac", ("FLAC", "PCM_24"), 2**-24), ("flac16", ("FLAC", "PCM_16"), 2**-16), ("wav", ("WAV", "FLOAT"), 0)],
)
def test_the_format_is_the_one_asked_for(settings, kind, encoding, step):
    done = prepare.prepare(tiny_task(), replace(settings, format=kind, sample_rate=16000))
    assert (done.files, done.failures) == (4, ())
    for file, *_ in ROWS:
        copy = settings.to / "tiny" / file
        with soundfile.SoundFile(copy) as opened:
            assert (opened.format, opened.subtype, opened.samplerate, opened.channels) == (*encoding, 16000, 1)
        original = audio.read(settings.data_root / "tiny" / file, 16000)
        np.testing.assert_allclose(audio.read(copy, 16000), original, atol=step, rtol=0)


@pytest.mark.parametrize("kind", ["flac", "flac16", "wav"])
def test_sounds_beyond_full_scale_are_not_clipped(settings, kind):
    wave = np.array([0.0, 1.4, -1.7, 0.3] * 2000, np.float32)
    soundfile.write(settings.data_root / "tiny" / "a.wav", wave, 8000, subtype="FLOAT")
    prepare.prepare(tiny_task(), replace(settings, format=kind, sample_rate=8000))
    assert np.array_equal(audio.read(settings.to / "tiny" / "a.wav", 8000), wave)
    assert soundfile.info(settings.to / "tiny" / "b.wav").format == ("WAV" if kind == "wav" else "FLAC")


def test_indexes_and_licences_are_copied_and_nothing_else(settings):
    root = settings.data_root / "tiny"
    for name in ("LICENSE", "README.md", "meta/notes.json", "audio.zip", "unlisted.wav", ".hidden.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"content")
    prepare.prepare(tiny_task(), settings)
    target = settings.to / "tiny"
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        *(file for file, *_ in ROWS),
        *("index.csv", "LICENSE", "README.md", "meta/notes.json"),
        *(".m2d-bench-copies.json", ".m2d-bench-copies.lock"),
    }
    assert (target / "index.csv").read_bytes() == (root / "index.csv").read_bytes()


def test_a_killed_run_goes_on_where_it_was_ended(settings, monkeypatch):
    written, copy = [], prepare._copy

    def killed(source, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(source.name)
        copy(source, *rest)

    monkeypatch.setattr(prepare, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(tiny_task(), replace(settings, jobs=1))
    (settings.to / "tiny" / ".c.wav.123.tmp").write_bytes(b"half")
    before = times(settings.to)
    monkeypatch.setattr(prepare, "_copy", lambda *arguments: (written.append(arguments[0].name), copy(*arguments)))
    assert prepare.prepare(tiny_task(), settings).files == 4
    assert sorted(written) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    after = times(settings.to)
    assert ".c.wav.123.tmp" not in after
    assert {name: after[name] for name in ("a.wav", "b.wav", "index.csv")}.items() <= before.items()


def killed_in_its_third_file(settings):
    calls, write = [], soundfile.write

    def slow(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments, **options)

    prepare.soundfile.write = slow
    prepare.prepare(tiny_task(), replace(settings, jobs=1))


def test_a_process_that_is_killed_leaves_whole_files_and_no_lock(settings):
    process = multiprocessing.get_context("fork").Process(target=killed_in_its_third_file, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in (settings.to / "tiny").glob("*.wav")) == ["a.wav", "b.wav"]
    assert prepare.prepare(tiny_task(), settings).files == 4
    assert len(copies(settings).readable().files) == 4


def test_what_has_changed_since_is_copied_anew(settings):
    prepare.prepare(tiny_task(), settings)
    before = times(settings.to)
    soundfile.write(settings.data_root / "tiny" / "b.wav", np.full(8000, 0.25), 8000)
    prepare.prepare(tiny_task(), settings)
    after = times(settings.to)
    assert {name for name in before if before[name] != after[name]} <= {"b.wav", ".m2d-bench-copies.lock"}
    assert audio.read(settings.to / "tiny" / "b.wav", 16000).mean() == pytest.approx(0.25, abs=0.01)


def test_bad_files_are_named_last_and_the_others_copied(tmp_path, capsys):
    root = write_tones(tmp_path / "data" / "esc10", clips=20)
    (root / "audio" / "3.wav").write_bytes(b"no sound")
    (root / "audio" / "7.wav").unlink()
    words = ["--data", str(tmp_path / "data"), "--to", str(tmp_path / "copies"), "--cache", str(tmp_path / "cache")]
    code = main(["tasks", "prepare", "esc10", *words])
    out, err = capsys.readouterr()
    assert code == 1
    assert f"{tmp_path / 'copies'}: 18 sound files of esc10 at 16000 Hz; evaluate with --data" in out
    errors = [line for line in err.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 2
    assert "3.wav: cannot be decoded" in errors[0]
    assert "7.wav: no such file" in errors[1]


def test_size_and_room_are_said_first(settings, caplog):
    prepare.prepare(tiny_task(), replace(settings, format="wav"))
    text = caplog.messages[0]
    assert text.startswith(f"{settings.to / 'tiny'}: copies of 4 files, 0.00125 hours, take about 0.000288 GB; ")
    assert text.endswith(" GB are free.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 8000}, "holds copies of .*16000.*, now .*8000.*--to"),
        ({"format": "flac16"}, "holds copies of .*'flac'.*, now .*'flac16'.*--to"),
    ],
)
def test_copies_of_two_kinds_do_not_mix(settings, change, message):
    prepare.prepare(tiny_task(), settings)
    before = times(settings.to)
    with pytest.raises(UsageError, match=message):
        prepare.prepare(tiny_task(), replace(settings, **change))
    after = times(settings.to)
    assert {name for name in before if before[name] != after[name]} <= {".m2d-bench-copies.lock"}


@pytest.mark.parametrize("where", ["data", "data/tiny", "data/tiny/16k", "."])
def test_copies_never_lie_in_the_data_set_itself(settings, tmp_path, where):
    before = times(tmp_path / "data")
    if where == ".":
        settings = replace(settings, data=tmp_path / "data" / "tiny")
        where = "data"
    with pytest.raises(UsageError, match="lies in the data set itself"):
        prepare.prepare(tiny_task(), replace(settings, to=tmp_path / where))
    assert times(tmp_path / "data") == before


def test_a_folder_that_holds_something_else_is_refused(settings):
    (settings.to / "tiny").mkdir(parents=True)
    (settings.to / "tiny" / "a.wav").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holds a\.wav, which this command did not write"):
        prepare.prepare(tiny_task(), settings)
    assert (settings.to / "tiny" / "a.wav").read_bytes() == b"mine"


def test_two_processes_do_not_copy_into_one_folder(settings):
    (settings.to / "tiny").mkdir(parents=True)
    lock = FileLock(settings.to / "tiny" / ".m2d-bench-copies.lock")
    with lock, pytest.raises(UsageError, match="another process is copying into this folder"):
        prepare.prepare(tiny_task(), settings)
    assert prepare.prepare(tiny_task(), settings).files == 4


def test_tasks_without_a_published_data_set_are_refused(settings):
    with pytest.raises(UsageError, match="tiny: copies are made of published data sets"):
        prepare.prepare(GENERATED, settings)


def test_a_full_disk_is_said_and_what_was_copied_stays(settings, monkeypatch):
    replacing = prepare.replacing

    def full(path):
        if path.name == "c.wav":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replacing(path)

    monkeypatch.setattr(prepare, "replacing", full)
    with pytest.raises(StorageError, match=r"the disk is full.*--to"):
        prepare.prepare(tiny_task(), replace(settings, jobs=1))
    assert (settings.to / "tiny" / "a.wav").exists()


def test_the_folder_of_one_data_set_is_copied_to_a_name_that_is_found(settings):
    (settings.data_root / "tiny").rename(settings.data_root / "any name")
    other = replace(LAYOUT, folders=("other",), index="other.csv")
    task = tiny_task(layouts=(other, replace(LAYOUT, folders=("usual", "tiny"))))
    done = prepare.prepare(task, replace(settings, data=settings.data_root / "any name"))
    assert (settings.to / "usual" / "index.csv").is_file()
    assert dataset.find(task, replace(settings, data=done.to)).files == tuple(file for file, *_ in ROWS)
