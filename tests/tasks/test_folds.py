"""Folds that are drawn keep groups together and classes apart, and are always the same."""

from collections import Counter
from pathlib import Path

import pytest

from m2d_bench.errors import DataError
from m2d_bench.tasks import folds
from m2d_bench.tasks.index import entry

CSV = Path("birds.csv")


def drawn(files, labels=("owl", "wren"), groups=()):
    """How folds of files were drawn, and the fold of each; labels in turn."""
    entries = [entry(file, labels[i % len(labels)].split(","), "") for i, file in enumerate(files)]
    entries = [e._replace(group=group) for e, group in zip(entries, groups or [""] * len(entries), strict=True)]
    found, clips = folds.draw(CSV, entries, files)
    return found.drawn, [clip.split for clip in clips]


NAMES = [
    [f"rec{recording}_{take:02d}.wav" for recording in range(10) for take in range(4)],
    [f"day/rec{recording} ({take}).wav" for recording in range(10) for take in range(4)],
    [f"2024-01-{recording + 10}.{take}.flac" for recording in range(10) for take in range(4)],
    [f"site{recording}-{take}" for recording in range(10) for take in range(4)],
]


@pytest.mark.parametrize("files", NAMES)
def test_files_of_one_name_up_to_its_last_number_fall_into_one_fold(files):
    how, found = drawn(files)
    assert how.endswith(f"10 groups: files of one name up to its last number, such as {files[0]} and {files[1]}")
    assert [len({*found[i : i + 4]}) for i in range(0, 40, 4)] == [1] * 10
    assert Counter(found) == dict.fromkeys("12345", 8)


@pytest.mark.parametrize("files", [[f"{i}.wav" for i in range(40)], [f"take{i}.mp3" for i in range(40)]])
def test_files_of_their_own_names_are_told_so(files):
    how, found = drawn(files)
    assert "over 40 files, no two of one name" in how
    assert Counter(zip(found, ("owl", "wren") * 20, strict=True)) == {
        (f, c): 4 for f in "12345" for c in ("owl", "wren")
    }


def test_names_that_say_the_class_alone_make_no_groups():
    files = [f"{name}_{i:03d}.wav" for i in range(20) for name in ("owl", "wren")]
    how, found = drawn(files)
    assert "over 40 groups: files of one name up to its last number, such as owl_000.wav and owl_001.wav, but" in how
    assert (
        "each file by itself of 2 classes that would have fewer than 5 groups (owl, wren); the column group of a CSV"
        in how
    )
    assert Counter(found) == dict.fromkeys("12345", 8)


def test_a_class_of_few_recordings_does_not_part_those_of_others():
    files = [*NAMES[0], *(f"rec99_{take}.wav" for take in range(10))]
    how, found = drawn(files, [*["owl"] * 40, *["wren"] * 10])
    assert "over 20 groups" in how
    assert "each file by itself of 1 classes that would have fewer than 5 groups (wren)" in how
    assert [len({*found[i : i + 4]}) for i in range(0, 40, 4)] == [1] * 10
    assert Counter(found[40:]) == dict.fromkeys("12345", 2)


def test_a_file_of_clips_of_several_classes_is_never_parted():
    files = [name for take in range(10) for name in [f"rec{take % 2}_{take}.wav"] * 2]
    _, found = drawn(files + NAMES[0], [*["wren", "owl"] * 10, *["owl"] * 40])
    assert found[:20:2] == found[1:20:2]


def test_the_column_group_says_what_belongs_together():
    files = [f"{i}.wav" for i in range(40)]
    how, found = drawn(files, groups=[f"bird{i // 8}" if i < 32 else "" for i in range(40)])
    assert "12 groups of the column group" in how
    assert [len({*found[i : i + 8]}) for i in range(0, 32, 8)] == [1] * 4


def test_several_labels_are_stratified_by_the_rarest():
    files = [f"{i}.wav" for i in range(40)]
    labels = ["common", "common", "common", "common,rare"]
    found = drawn(files, labels)[1]
    assert Counter(fold for i, fold in enumerate(found) if i % 4 == 3) == dict.fromkeys("12345", 2)


def test_folds_do_not_depend_on_the_order_of_the_clips():
    files = NAMES[0]
    forward = dict(zip(files, drawn(files, ["owl"])[1], strict=True))
    backward = dict(zip(files[::-1], drawn(files[::-1], ["owl"])[1], strict=True))
    assert forward == backward


@pytest.mark.parametrize(
    ("files", "groups", "says"),
    [
        (["a.wav"] * 2, ["x", "y"], "birds.csv: 1 files in several groups, such as a.wav"),
        (["a.wav", "b.wav", "c.wav"], ["x"] * 3, "birds.csv: 3 clips in 1 groups are too few to draw 5 folds"),
        (list("abcdefgh"), [], "birds.csv: 8 clips in 8 groups are too few"),
    ],
)
def test_what_cannot_be_drawn_is_refused(files, groups, says):
    with pytest.raises(DataError, match=says):
        drawn(files, groups=groups)
