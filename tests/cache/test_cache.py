"""`m2d-bench cache` shows what this package made, and clears nothing else: not beside a process, not through a link."""

import os
import shutil
import time

import pytest
from filelock import FileLock

from m2d_bench.cache import entries
from m2d_bench.cli import main
from m2d_bench.evaluation import embeddings
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from tests.evaluation.test_embeddings import COMPUTE, Counting
from tests.tasks.test_dataset import ROWS, tiny_task, write_task
from tests.tasks.test_generated import TASK, made  # noqa: F401


@pytest.fixture
def root(tmp_path, made):  # noqa: F811
    """A cache with something of each kind in it, embeddings and a generated task as they are really made."""
    root = tmp_path / "cache"
    storage = Storage(data=write_task(tmp_path / "data", ROWS).data, cache=root)
    data = dataset.load(tiny_task(name="birds"), storage)
    embeddings.encode(Counting(), data, COMPUTE, storage)
    dataset.load(TASK, storage)
    shutil.rmtree(root / "contents", ignore_errors=True)  # there only if this took more than two seconds
    write(root / "weights.sha256", f"{'0' * 64}  released.zip\n")
    for name in ("released", "by_hand"):
        write(root / "weights" / name / "checkpoint.pth")
        write(root / "weights" / f"{name}.lock", "")
    write(root / "weights" / "other.zip.part")
    write(root / "contents" / "0123456789abcdef")
    write(root / "mteb" / "2.0-abc" / "results" / "task.json")
    write(root / "superb" / "voxceleb1-0123456789ab" / "train.pkl")
    write(root / "embeddings" / "notes.txt")
    age(root, hours=2)
    return root


def write(path, text="content"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def age(root, hours):
    """Makes all files so old."""
    then = time.time() - 3600 * hours
    for path in root.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def cache(capsys, root, *words):
    code = main(["cache", *words, "--cache", str(root)])
    return code, *capsys.readouterr()


def rows(text):
    """Kind and the rest of each line of the table."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    return [line.split() for line in lines]


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


LEFT = [
    "embeddings/notes.txt",
    "tasks/tiny-v1.lock",
    "weights.sha256",
    "weights/by_hand.lock",
    "weights/by_hand/checkpoint.pth",
    "weights/released.lock",
]
"""What is not this package's, and locks that a process may wait for."""


def test_the_table_tells_kind_model_task_size_and_last_use(root, capsys):
    code, out, _ = cache(capsys, root)
    assert code == 0
    date = time.strftime("%Y-%m-%d", time.localtime(time.time() - 7200))
    assert [row[:-1] for row in rows(out)] == [
        ["embeddings", "Counting", "(counting)", "birds", "3", "0.0", date],
        ["tasks", "tiny", "7", "0.1", date],
        ["weights", "other", "1", "0.0", date],
        ["weights", "released", "2", "0.0", date],
        ["durations", "1", "0.0", date],
        ["mteb", "2.0-abc", "1", "0.0", date],
        ["superb", "voxceleb1", "1", "0.0", date],
        ["other,", "never", "removed", "3", "0.0", date],
    ]
    assert out.splitlines()[-1] == f"{root}: 0.1 MB"


def test_nothing_is_removed_before_it_was_shown(root, capsys):
    before = files(root)
    code, out, _ = cache(capsys, root, "clear")
    assert (code, files(root)) == (0, before)
    assert len(rows(out)) == 7
    assert out.splitlines()[-1] == f"{root}: --yes removes these 0.1 MB"


def test_all_that_was_made_is_removed_and_nothing_else(root, capsys):
    code, out, err = cache(capsys, root, "clear", "--yes")
    assert (code, err) == (0, "")
    assert len(rows(out)) == 7
    assert files(root) == LEFT
    assert not list(root.glob("*/*/audio"))
    assert not (root / "embeddings" / "counting").exists()
    assert cache(capsys, root, "clear", "--yes")[1].startswith(f"{root}: nothing to remove")


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["--kind", "tasks,mteb"], ["tasks", "mteb"]),
        (["--model", "Counting"], ["embeddings"]),
        (["--model", "count", "released"], ["embeddings", "weights"]),
        (["--tasks", "birds"], ["embeddings"]),
        (["--tasks", "tiny", "--kind", "embeddings"], []),
        (["--older-than", "0.5"], []),
        (["--older-than", "0.05"], ["embeddings", "tasks", "weights", "weights", "durations", "mteb", "superb"]),
    ],
)
def test_kind_model_task_and_age_choose_what_goes(root, capsys, words, kinds):
    code, out, _ = cache(capsys, root, "clear", *words)
    assert (code, [row[0] for row in rows(out)] if kinds else []) == (0, kinds)


@pytest.mark.parametrize("words", [["--kind", "embedings"], ["--model", "nobody"], ["--tasks", "brids"]])
def test_a_name_of_which_nothing_is_there_is_an_error(root, capsys, words):
    before = files(root)
    code, _, err = cache(capsys, root, "clear", "--yes", *words)
    assert (code, files(root)) == (2, before)
    assert f"Unknown {words[0].strip('-').removesuffix('s')} {words[1]!r}" in err


def test_what_was_just_used_stays_unless_that_is_asked_for(root, tmp_path, capsys):
    storage = Storage(data=tmp_path / "data", cache=root)
    dataset.load(TASK, storage)
    embeddings.encode(Counting(), dataset.load(tiny_task(name="birds"), storage), COMPUTE, storage)
    kinds = ("embeddings", "tasks", "weights", "mteb", "superb")
    removed = [row[0] for row in rows(cache(capsys, root, "clear", "--yes", "--kind", *kinds)[1])]
    assert removed == ["weights", "weights", "mteb", "superb"]
    left = [row[0] for row in rows(cache(capsys, root, "clear", "--older-than", "0", "--kind", *kinds)[1])]
    assert left == ["embeddings", "tasks"]


@pytest.mark.parametrize("kind", ["embeddings", "tasks", "weights"])
def test_what_another_process_is_writing_is_left_and_named(root, capsys, kind):
    (lock,) = [path for path in root.glob(f"{kind}/**/*.lock") if path.name != "by_hand.lock"]
    (root / "weights" / "other.zip.part").unlink()
    before = files(root / kind)
    with FileLock(lock):
        code, _, err = cache(capsys, root, "clear", "--yes", "--kind", kind)
    assert (code, files(root / kind)) == (1, before)
    assert "another process is writing it; it was left." in err


def test_links_are_never_followed(root, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "events-v1" / "audio" / "00000.wav")
    write(elsewhere / "file.npy")
    folder = next((root / "embeddings" / "counting").iterdir())
    (folder / "00009.npy").symlink_to(elsewhere / "file.npy")
    (root / "tasks" / "events-v1").symlink_to(elsewhere / "events-v1")
    (root / "contents" / "fedcba9876543210").symlink_to(elsewhere / "file.npy")
    age(root, hours=2)
    code, _, err = cache(capsys, root, "clear", "--yes", "--older-than", "0")
    assert (code, err) == (0, "")
    assert files(elsewhere) == ["events-v1/audio/00000.wav", "file.npy"]
    assert (folder / "00009.npy").is_symlink()
    assert (root / "tasks" / "events-v1").is_symlink()


def test_files_that_vanish_meanwhile_are_no_error(root):
    found = entries.find(root)
    (root / "contents" / "0123456789abcdef").unlink()
    removed, failures = entries.remove(root, [entry for entry in found if entry.kind == "durations"])
    assert (len(removed), failures) == (1, [])


def test_what_cannot_be_removed_is_named(root, monkeypatch, capsys):
    def refuse(path, **_):
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    code, _out, err = cache(capsys, root, "clear", "--yes", "--kind", "durations", "mteb")
    assert code == 1
    assert err.count("ERROR") == 2
    assert "mteb 2.0-abc: not removed: " in err


def test_a_cache_that_is_not_there_is_empty(tmp_path, capsys):
    assert cache(capsys, tmp_path / "none") == (0, f"{tmp_path / 'none'}: empty\n", "")


def test_embeddings_of_before_names_were_kept_are_shown_by_their_digest(root, capsys):
    next(root.rglob(entries.NAMES)).unlink()
    assert rows(cache(capsys, root)[1])[0][:3] == ["embeddings", "(counting)", "birds"]
