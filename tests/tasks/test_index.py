"""Labels and folds are read as they are meant, whoever wrote the table; what cannot be meant is refused or said."""

import csv
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from m2d_bench import linear, runs, tasks
from m2d_bench.errors import DataError
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset, index
from tests.conftest import small_encoder
from tests.tasks.test_hear import FOLDS, OFFICIAL, write_hear

NFC, NFD = (unicodedata.normalize(form, "Stör") for form in ("NFC", "NFD"))
LABELS = ["owl", "wren"] * 6
SPLITS = ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
FOLD = ["1", "2", "3"] * 4


def evar(
    root, *, header="file_name,label,split", labels=LABELS, splits=SPLITS, contents=range(12), names=None, lines=()
):
    """A metadata file of EVAR with clips of noise, those of one content being the same."""
    clips, path = root / "work" / "16k" / "birds", root / "evar" / "metadata" / "birds.csv"
    names = names or [f"{clip}.wav" for clip in range(len(labels))]
    for folder in (clips, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        soundfile.write(clips / name, 0.1 * np.random.default_rng(content).standard_normal(800), 16000)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{header}\n")
        csv.writer(file).writerows([*zip(names, labels, splits, strict=True), *lines])
    return f"evar:{path}"


def load(name):
    return dataset.load(tasks.get(name), Storage())


@pytest.mark.parametrize(
    ("cell", "labels"),
    [("owl", ["owl"]), ("\u00a0owl\t", ["owl"]), ("owl ,wren", ["owl", "wren"]), (",,owl,", ["owl"]), (" , ", [])],
)
def test_blanks_make_no_classes(cell, labels):
    assert index.entry("a.wav", cell.split(","), "train").labels == tuple(labels)


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path):
    assert load(evar(tmp_path, labels=[NFC, NFD, "owl"] * 4)).classes == (NFC, "owl")
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4)
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},tone{i}{NFC}\n" for i in range(4)))
    for split in OFFICIAL:
        clips = json.loads((folder / f"{split}.json").read_text())
        (folder / f"{split}.json").write_text(json.dumps({file: [f" {x}{NFD}"] for file, (x,) in clips.items()}))
    assert load(f"hear:{folder}").labels.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize(
    ("splits", "folds"),
    [
        (["1", "2.0", "3"] * 2 + ["1.0", "2", "3.00"] * 2, ["1", "2", "3"]),
        (["1 ", " 2", "3"] * 4, ["1", "2", "3"]),
        (["fold01", "fold02", "v1.0"] * 4, ["fold01", "fold02", "v1.0"]),
    ],
)
def test_a_fold_is_one_however_a_spreadsheet_wrote_it(tmp_path, splits, folds):
    assert sorted(set(load(evar(tmp_path, header="file_name,label,fold", splits=splits)).splits)) == folds


def test_blanks_after_commas_and_lines_of_commas_are_nothing(tmp_path):
    name = evar(
        tmp_path, header="\ufefffile_name, label, split,,", labels=[f" {x}" for x in LABELS], lines=[("", "", "")]
    )
    assert load(name).classes == ("owl", "wren")


def test_a_comma_behind_the_only_label_makes_no_multi_label_task(tmp_path):
    assert tasks.get(evar(tmp_path, labels=["owl,", "wren,"] * 6)).multilabel is False


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": ["owl", ""] * 6}, r"6 clips have not one label: 1\.wav, 3\.wav, .* …\. Give each one"),
        ({"splits": ["", *SPLITS[1:]]}, r"1 clips have no fold or split: 0\.wav"),
        ({"splits": [" ", *FOLD[1:]], "header": "file_name,label,fold"}, r"1 clips have no fold or split: 0\.wav"),
        ({"labels": ["owl"] * 12}, "with the classes owl; it takes clips of two"),
        ({"labels": ["owl"] * 6 + ["wren"] * 6}, "the clips of train train, with the classes owl"),
        ({"splits": ["1"] * 12, "header": "file_name,label,fold"}, "no other fold"),
        ({"header": "file_name,label,label"}, "a column stands twice"),
        ({"header": "file_name,label"}, "3 cells in the line '0.wav, owl, train', 2 in the header"),
        ({"header": "name,label,split"}, r"no column file_name \(or filename, .*; it has name, label, split"),
        ({"lines": [("x.wav", "owl")]}, "2 cells in the line 'x.wav, owl', 3"),
        ({"labels": [], "splits": [], "contents": []}, "a header and nothing below"),
        ({"labels": [], "splits": [], "contents": [], "header": ""}, "it is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, changes, says):
    with pytest.raises(DataError, match=says):
        load(evar(tmp_path, **changes))


def test_a_class_stands_once_in_a_vocabulary(tmp_path):
    folder = write_hear(tmp_path / "tones", OFFICIAL, clips=4)
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,tone0\n1,tone0 \n2,\n3,tone3\n")
    with pytest.raises(DataError, match="4 lines, 2 different labels"):
        tasks.get(f"hear:{folder}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lines": [("2.wav", "owl", "test")]}, "1 sounds in several splits, .*: 2.wav (train, test)."),
        ({"contents": [*range(11), 7]}, "1 sounds in several splits, .*: 7.wav = 11.wav (valid, test)."),
        (
            {"contents": [0] * 12, "splits": FOLD, "header": "file_name,label,fold"},
            "1 sounds in several splits, .*: 0.wav = 1.wav = 2.wav … (1, 2, 3).",
        ),
        ({"lines": [("2.wav", "wren", "train")]}, "1 clips listed several times in one split: 2.wav."),
        ({"labels": [*LABELS[:11], "crow"]}, "1 classes tested where no clip of theirs trains: crow (test)."),
        (
            {"labels": ["owl", "wren", "crow"] * 4, "splits": FOLD, "header": "file_name,label,fold"},
            "3 classes tested where no clip of theirs trains: owl (1), wren (2), crow (3).",
        ),
        ({"labels": ["owl,wren", ",", "wren"] * 4}, "4 clips without a label: 1.wav, 4.wav, 7.wav, 10.wav."),
        ({"labels": ["owl", "wren", "Owl"] * 4}, "2 classes that differ in capitals alone: Owl, owl."),
    ],
)
def test_what_makes_scores_doubtful_is_one_line_and_in_the_record(tmp_path, changes, says, caplog):
    found = load(evar(tmp_path, **changes))
    (warning,) = found.facts["warnings"]
    (record,) = (record for record in caplog.records if "ds_tasks.py" not in record.message)
    assert record.getMessage() == warning
    pattern = says.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=f"^evar:birds: {pattern}$"):
        raise DataError(warning)


def test_a_record_holds_the_warnings_and_is_the_same_without(tmp_path):
    settings = {"seeds": 1, "epochs": 1, "runs": tmp_path / "runs", "device": "cpu"}
    (run,) = linear(small_encoder(), evar(tmp_path, contents=[*range(11), 0]), **settings)
    (path,) = (tmp_path / "runs").rglob("*.json")
    stored = runs.load(path)
    assert "0.wav = 11.wav (train, test)" in stored.task["warnings"][0]
    older = {name: value for name, value in stored.task.items() if name != "warnings"}
    assert replace(stored, task=older).key == run.key


def test_a_copy_in_another_fold_of_a_hear_task_is_found(tmp_path):
    folder = write_hear(tmp_path / "tones", FOLDS, clips=4)
    clips = folder / "16000"
    (clips / "fold03" / "fold03-1.wav").write_bytes((clips / "fold01" / "fold01-1.wav").read_bytes())
    (warning,) = load(f"hear:{folder}").warnings
    assert warning.endswith(": 16000/fold01/fold01-1.wav = 16000/fold03/fold03-1.wav (fold01, fold03).")


def test_folds_and_official_splits_of_one_name_are_different_data(tmp_path):
    splits = ["train"] * 6 + ["test"] * 6
    official = load(evar(tmp_path / "official", splits=splits))
    folds = load(evar(tmp_path / "folds", header="file_name,label,fold", splits=splits))
    assert official.fingerprint != folds.fingerprint


def test_a_header_that_lies_changes_no_unit_duration(tmp_path):
    name = evar(tmp_path)
    liar = tmp_path / "work" / "16k" / "birds" / "3.wav"
    content = bytearray(liar.read_bytes())
    content[40:44] = (2**30).to_bytes(4, "little")
    content[4:8] = (2**30 + 36).to_bytes(4, "little")
    liar.write_bytes(content)
    assert tasks.get(name).clip_seconds == pytest.approx(800 / 16000)
