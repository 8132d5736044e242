"""Published data sets in miniatures of the layouts that their authors publish: clips, labels and splits are theirs."""

import importlib
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d_bench import tasks
from m2d_bench.cli import main
from m2d_bench.errors import DataError
from m2d_bench.evaluation import embeddings
from m2d_bench.evaluation.linear import linear
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset, index, layouts
from m2d_bench.tasks import task as task_module

ROOT = Path(__file__).parent.parent.parent
SPLITS = ("train", "train", "valid", "test")
"""Splits of the four clips of each class."""


def write_clips(root, files):
    """Tenths of a second of noise that each path decides."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(os.fsencode(file))).standard_normal(1600)
        soundfile.write(path, 0.1 * noise, 16000)


def write_text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def clips_of(classes, pattern, numbers=range(4)):
    """Files by a pattern of label, split and number → label and split."""
    return {
        pattern.format(label=label, split=split, i=number, n=4 * place + number): (label, split)
        for place, label in enumerate(classes)
        for number, split in zip(numbers, SPLITS, strict=True)
    }


def names_of(clips, *splits):
    return [file for file, (_, split) in clips.items() if split in splits]


def spcv2(data, folder="speech_commands_v0.02"):
    clips = clips_of(("no", "up", "yes"), "{label}/{n}c4_nohash_{i}.wav")
    write_text(data / folder / "validation_list.txt", *names_of(clips, "valid"))
    write_text(data / folder / "testing_list.txt", *names_of(clips, "test"))
    write_clips(data / folder, [*clips, "_background_noise_/white_noise.wav"])
    return clips


def spcv1(data):
    return spcv2(data, "speech_commands_v0.01")


def vc1(data):
    clips = clips_of(("id10001", "id10002", "id10270"), "{label}/1zcIwhmdeo{n}/0000{i}.wav")
    numbers = {"train": 1, "valid": 2, "test": 3}
    write_text(data / "vox1" / "iden_split.txt", *(f"{numbers[split]} {file}" for file, (_, split) in clips.items()))
    moved = {f"vox1_{'test' if 'id10270' in file else 'dev'}_wav/wav/{file}": clip for file, clip in clips.items()}
    write_clips(data / "vox1", moved)
    return moved


def voxforge(data):
    clips = clips_of(("de", "en", "ru"), "anonymous-20080504-{n}ab/wav/{label}-{i}.wav")
    lines = (f"{file},{label},{split}" for file, (label, split) in clips.items())
    write_text(data / "voxforge" / "voxforge.csv", "file_name,label,split", *lines)
    write_clips(data / "voxforge", clips)
    return clips


SPEAKERS = {"1002": "train", "1091": "train", "1009": "valid", "1001": "test", "1017": "test"}


def cremad(data):
    clips = {
        f"{speaker}_DFA_{emotion}_XX.wav": (emotion, split)
        for speaker, split in SPEAKERS.items()
        for emotion in ("ANG", "HAP", "SAD")
    }
    others = ("1017_IWW_FEA_XX.wav", "1040_ITH_SAD_X.wav", "1040_ITH_SAD_XX.wav")
    write_clips(data / "CREMA-D" / "AudioWAV", [*clips, *others])
    return clips


def cremad_gender(data):
    sexes = {"1002": "Female", "1091": "Male", "1009": "Male", "1001": "Male", "1017": "Female"}
    lines = (f"{speaker},51,{sex},Caucasian,Not Hispanic" for speaker, sex in sexes.items())
    write_text(data / "CREMA-D" / "VideoDemographics.csv", "ActorID,Age,Sex,Race,Ethnicity", *lines)
    return {file: (sexes[file[:4]], split) for file, (_, split) in cremad(data).items()}


def gtzan(data, suffix=".au"):
    clips = clips_of(("blues", "jazz", "rock"), "{label}/{label}.0000{i}.wav")
    for split in ("train", "valid", "test"):
        write_text(data / "genres" / f"{split}_filtered.txt", *names_of(clips, split))
    clips = {file.replace(".wav", suffix): clip for file, clip in clips.items()}
    write_clips(data / "genres", clips)
    return clips


def nsynth(data, label="instrument_family_str"):
    families = {"bass": 21, "flute": 60, "reed": 108}
    pattern = "nsynth-{split}/audio/{label}_acoustic_00{n}-060-127.wav"
    clips = clips_of(families, pattern)
    for split in ("train", "valid", "test"):
        notes = {
            os.path.basename(file)[:-4]: {"instrument_family_str": clips[file][0], "pitch": families[clips[file][0]]}
            for file in names_of(clips, split)
        }
        write_text(data / "nsynth" / f"nsynth-{split}" / "examples.json", json.dumps(notes))
    write_clips(data / "nsynth", clips)
    return {
        file: (str(families[family]) if label == "pitch" else family, split) for file, (family, split) in clips.items()
    }


def nsynth_pitch(data):
    return nsynth(data, "pitch")


def surge(data):
    tones = {f"surge-patches-factory-Leads-Tone-{i}-velocity64": split for i, split in enumerate(SPLITS)}
    clips = {f"{tone}/{note}.ogg": (note, split) for tone, split in tones.items() for note in ("note21", "note60")}
    lines = (f"{tone},{split}" for tone, split in tones.items())
    write_text(data / "surge" / "dataset_surge_tone_splits.csv", "tone,split", *lines)
    write_clips(data / "surge", clips)
    return clips


SEGMENTS = {
    "balanced_train_segments": ("--PJHxphWEs", "Ybcdefghij_", "-0RWZT-miFs"),
    "unbalanced_train_segments": ("---1_cCGK4M", "0123456789a"),
    "eval_segments": ("--4gqARaEJE", "--BfvyPmVMo"),
}
MIDS = ("/m/09x0r", "/m/03v3yw,/m/0k4j", "/t/dd00088,/m/09x0r")


def as2m(data, sets=tuple(SEGMENTS)):
    """As of https://github.com/qiuqiangkong/audioset_tagging_cnn; one segment was never fetched."""
    names = ("Y{}.wav", "{}.wav", "Y{}_30.000.wav")
    clips = {}
    for part, segments in SEGMENTS.items():
        lines = []
        for number, segment in enumerate(segments):
            lines.append(f'{segment}, {number}0.000, {number + 1}0.000, "{MIDS[number]}"')
            split = "test" if part == "eval_segments" else "train"
            file = f"audios/{part}/{part}_part00/{names[number].format(segment)}"
            write_clips(data / "AudioSet", [file])
            if part in sets:
                clips[file] = (*MIDS[number].split(","), split)
        head = "# Segments csv created", "# num_ytids=3", "# YTID, start_seconds, end_seconds, positive_labels"
        lines.append(f'{part[:10]}x, 0.000, 10.000, "/m/09x0r"')
        write_text(data / "AudioSet" / "metadata" / f"{part}.csv", *head, *lines)
    write_clips(data / "AudioSet", ["audios/other/Ynosuchsegm.wav"])
    return clips


def as20k(data):
    return as2m(data, ("balanced_train_segments", "eval_segments"))


def fsd50k(data):
    clips = clips_of(("Bark,Dog,Animal", "Rain", "Wind,Rain"), "FSD50K.{split}_audio/{n}.wav")
    clips = {
        file.replace("train", "dev").replace("valid", "dev").replace("test", "eval"): (*label.split(","), split)
        for file, (label, split) in clips.items()
    }
    lines = {"dev": ["fname,labels,mids,split"], "eval": ["fname,labels,mids"]}
    for file, (*labels, split) in clips.items():
        line = f'{os.path.basename(file)[:-4]},"{",".join(labels)}","/m/1"'
        lines["eval" if split == "test" else "dev"].append(
            line + {"train": ",train", "valid": ",val", "test": ""}[split]
        )
    for part, text in lines.items():
        write_text(data / "FSD50K" / "FSD50K.ground_truth" / f"{part}.csv", *text)
    write_clips(data / "FSD50K", clips)
    return clips


def fsdnoisy18k(data):
    clips = clips_of(("Acoustic_guitar", "Rain", "Wind"), "FSDnoisy18k.audio_{split}/{n}.wav")
    clips = {
        file.replace("valid", "test"): (label, split.replace("valid", "test")) for file, (label, split) in clips.items()
    }
    heads = {"train": ("aso_id,manually_verified,noisy_small", "/m/1,1,0"), "test": ("aso_id", "/m/1")}
    for split, (columns, cells) in heads.items():
        lines = (f"{os.path.basename(file)},{clips[file][0]},{cells}" for file in names_of(clips, split))
        write_text(data / "FSDnoisy18k" / "FSDnoisy18k.meta" / f"{split}.csv", f"fname,label,{columns}", *lines)
    write_clips(data / "FSDnoisy18k", clips)
    return clips


def vocalsound(data):
    clips = clips_of(("cough", "sigh", "throatclearing"), "audio_16k/f00{n}_0_{label}.wav")
    for split, part in {"train": "tr", "valid": "val", "test": "te"}.items():
        listed = [{"wav": f"/data/sls/share/{file}", "labels": "/m/1"} for file in names_of(clips, split)]
        write_text(data / "vs_release_16k" / "datafiles" / f"{part}.json", json.dumps({"data": listed}))
    write_clips(data / "vs_release_16k", clips)
    return clips


def icbhi2017(data):
    """The list names one recording with another device."""
    root = data / "ICBHI_final_database"
    names = ("101_1b1_Al_sc_Meditron", "102_1b1_Ar_sc_Meditron", "226_1b1_Pl_sc_LittC2SE")
    write_text(
        root / "ICBHI_challenge_train_test.txt",
        *(
            f"{name}\t{split}"
            for name, split in zip((*names[:2], "226_1b1_Pl_sc_Meditron"), ("train", "train", "test"), strict=True)
        ),
    )
    clips = {}
    for name, split in zip(names, ("train", "train", "test"), strict=True):
        write_text(root / f"{name}.txt", "0.00\t0.04\t0\t0", "0.04\t0.1\t1\t0", "0.02\t0.03\t1\t1", "0.03\t0.09\t0\t1")
        for label, span in {
            "normal": "0-0.04",
            "crackle": "0.04-0.1",
            "both": "0.02-0.03",
            "wheeze": "0.03-0.09",
        }.items():
            clips[f"{name}.wav {span}"] = (label, split)
    write_clips(root, [f"{name}.wav" for name in names])
    return clips


def sprsound(data):
    """As in the repository since 2024: other years and the test with known patients lie beside."""
    root, clips = data / "SPRSound" / "BioCAS2022", {}
    parts = {
        "train2022_json/40490865_8.4_1_p2_1900": "train",
        "test2022_json/inter_test_json/40890405_3.3_0_p3_3655": "test",
        "test2022_json/intra_test_json/40813160_4.1_1_p2_674": "",
    }
    for part, split in parts.items():
        folder, stem = part.split("_json")[0], part.rpartition("/")[2]
        spans = {"Normal": ("0", "40"), "Wheeze+Crackle": ("40", "100"), "Stridor": (20, 30)}
        events = [{"start": start, "end": end, "type": label} for label, (start, end) in spans.items()]
        write_text(root / f"{part}.json", json.dumps({"record_annotation": "CAS", "event_annotation": events}))
        write_clips(root, [f"{folder}_wav/{stem}.wav"])
        for label, (start, end) in spans.items() if split else ():
            clips[f"BioCAS2022/{folder}_wav/{stem}.wav {int(start) / 1000:g}-{int(end) / 1000:g}"] = (label, split)
    return clips


LAYOUTS = {
    build.__name__: build
    for build in (
        *(spcv2, spcv1, vc1, voxforge, cremad, cremad_gender, gtzan, nsynth, nsynth_pitch, surge, as20k, as2m),
        *(fsd50k, fsdnoisy18k, vocalsound, icbhi2017, sprsound),
    )
}


def fitted(monkeypatch, name, clips):
    """The task with the counts of its miniature."""
    module = importlib.import_module(f"m2d_bench.tasks.{name}")
    splits = Counter(split for *_, split in clips.values())
    labels = {label for *labels, _ in clips.values() for label in labels}
    task = replace(module.TASK, n_clips=len(clips), split_clips=splits)
    task = task if task.classes else replace(task, n_classes=len(labels))
    monkeypatch.setattr(module, "TASK", task)
    return task


@pytest.mark.parametrize("name", LAYOUTS)
def test_clips_labels_and_splits_are_those_published(tmp_path, monkeypatch, capsys, name):
    clips = LAYOUTS[name](tmp_path)
    task = fitted(monkeypatch, name, clips)
    found = dataset.load(task, Storage(data=tmp_path))
    files = [f"{file} {found.span_name(clip)}".strip() for clip, file in enumerate(found.files)]
    read = zip(files, map(found.labels_of, range(len(clips))), found.splits.tolist(), strict=True)
    assert {file: (*sorted(labels), split) for file, labels, split in read} == {
        file: (*sorted(labels), split) for file, (*labels, split) in clips.items()
    }
    assert found.seconds.max() == pytest.approx(0.06 if task.fade_seconds else 0.1)
    assert main(["tasks", "check", name, "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["all", str(len(clips))]


@pytest.mark.parametrize("moved", [True, False])
def test_sprsound_is_found_where_the_repository_moved_it_and_a_second_copy_counts_once(tmp_path, moved):
    clips = sprsound(tmp_path)
    root = tmp_path / "SPRSound"
    shutil.copytree(root / "BioCAS2022", root / "releases" / "BioCAS2022")
    if moved:
        shutil.rmtree(root / "BioCAS2022")
    assert len(dataset.find(tasks.get("sprsound"), Storage(data=tmp_path)).files) == len(clips)


@pytest.mark.parametrize("folder", ["Crema_D", "cremad", "CREMA D", "crema-d-master"])
def test_a_folder_is_found_whatever_capitals_and_hyphens_its_name_has(tmp_path, folder):
    cremad(tmp_path)
    (tmp_path / "CREMA-D").rename(tmp_path / folder)
    assert layouts.locate(tasks.get("cremad"), tmp_path)[0] == tmp_path / folder
    (tmp_path / folder / "AudioWAV" / "1001_DFA_ANG_XX.wav").unlink()
    assert layouts.home(tasks.get("cremad"), tmp_path) == tmp_path / folder


@pytest.mark.parametrize("name", ["icbhi2017", "gtzan", "vc1", "surge", "voxforge"])
def test_a_list_beside_the_folder_is_asked_for_inside(tmp_path, name):
    LAYOUTS[name](tmp_path)
    (folder,) = tmp_path.iterdir()
    part = next(
        part for part in tasks.get(name).parts if part.lies_in(folder) and part.holds[0][-4:] in (".txt", ".csv")
    )
    (folder / str(part)).rename(tmp_path / str(part))
    with pytest.raises(DataError, match=re.escape(f"{folder} lacks {part}. Run m2d-bench tasks download {name}")):
        layouts.locate(tasks.get(name), tmp_path)


def test_the_counts_are_those_of_the_papers():
    rows = index.read_columns(ROOT / "results" / "papers" / "tasks.csv", ["task_id"]).to_dict("records")
    for row in rows:
        name = {"vf": "voxforge"}.get(row["task_id"], row["task_id"])
        if name in tasks.NAMES:
            task = tasks.get(name)
            wanted = {"avg_duration_s": task.clip_seconds, "n_classes": task.n_classes, **task.split_clips}
            assert all(float(row[column]) == value for column, value in wanted.items() if row.get(column)), name
            assert row["metric"] in (task.metric, ""), name
            assert row["domain"] in (task.domain, "medical"), name


def test_every_published_set_has_its_counts_and_a_miniature():
    for name in {*tasks.NAMES} - {*tasks.BUILT_IN}:
        task = tasks.get(name)
        assert sum(task.split_clips.values()) == task.n_clips, name
        assert {*task.split_clips} <= {"train", "valid", "test"} or len(task.split_clips) == task.folds.count
        assert name in LAYOUTS or name in ("esc10", "esc50", "us8k")


@pytest.mark.parametrize("name", ["spcv2", "cremad", "as20k"])
def test_other_counts_of_a_split_are_an_error_of_the_check(tmp_path, capsys, name):
    counts = Counter(split for *_, split in LAYOUTS[name](tmp_path).values())
    assert main(["tasks", "check", name, "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    for split, clips in tasks.get(name).split_clips.items():
        assert f"holds {counts[split]} clips of {split}, the task has {clips}" in said


def test_clips_that_vanished_are_a_doubt_and_others_an_error(tmp_path):
    for name in ("as20k", "cremad"):
        LAYOUTS[name](tmp_path)
    storage = Storage(data=tmp_path)
    said = dataset.load(tasks.get("as20k"), storage).facts["warnings"]
    assert any("3 clips of train, the task has 21940" in warning for warning in said)
    with pytest.raises(DataError, match="15 clips, the task has 7438"):
        dataset.load(tasks.get("cremad"), storage)


@pytest.mark.parametrize(
    ("name", "file", "source"),
    [
        ("vc1", "iden_split.txt", "robots.ox.ac.uk"),
        ("voxforge", "voxforge.csv", "nttcslab/eval-audio-repr"),
        ("gtzan", "test_filtered.txt", "music_dataset_split"),
        ("gtzan", "train_filtered.txt", "music_dataset_split"),
        ("surge", "dataset_surge_tone_splits.csv", "nttcslab/eval-audio-repr"),
        ("cremad_gender", "VideoDemographics.csv", "CheyneyComputerScience"),
        ("as20k", "eval_segments.csv", "us_audioset"),
        ("icbhi2017", "ICBHI_challenge_train_test.txt", "bhichallenge"),
    ],
)
def test_a_missing_list_is_named_with_where_to_get_it(tmp_path, capsys, name, file, source):
    LAYOUTS[name](tmp_path)
    (path,) = tmp_path.rglob(file)
    path.unlink()
    assert main(["tasks", "check", name, "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert file in said
    assert str(path.parent if path.parent.name != "metadata" else path.parent.parent) in said
    assert source in said
    assert "and put it there" in said


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spcv2", "yes/a.wav 1\n", "testing_list.txt: not a list in UTF-8 with 1 words a line"),
        ("vc1", "1 a/b.wav\nonly\n", "iden_split.txt: not a list in UTF-8 with 2 words a line: 'only'"),
        ("nsynth", "[]", "examples.json: holds a list"),
        ("as20k", "--4gqARaEJE, 0.000\n", "eval_segments.csv: not a CSV file in UTF-8 with 4 cells a line"),
        ("icbhi2017", "101_1b1_Al_sc_Meditron train 1\n", "train_test.txt: not a list in UTF-8 with 2 words a line"),
    ],
)
def test_a_list_of_another_format_is_named(tmp_path, name, text, message):
    LAYOUTS[name](tmp_path)
    (path,) = tmp_path.rglob(tasks.get(name).layouts[-1].index)
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        dataset.find(tasks.get(name), Storage(data=tmp_path))


def test_a_cycle_that_is_no_stretch_of_its_recording_is_named(tmp_path):
    icbhi2017(tmp_path)
    (tmp_path / "ICBHI_final_database" / "102_1b1_Ar_sc_Meditron.txt").write_text("0.4 early 0 0\n")
    with pytest.raises(DataError, match=r"Ar_sc_Meditron\.txt: start_s and end_s of .* are '0.4' and 'early'"):
        dataset.find(tasks.get("icbhi2017"), Storage(data=tmp_path))


@pytest.mark.parametrize("name", ["gtzan", "surge", "as2m"])
def test_a_broken_and_a_missing_clip_are_named(tmp_path, monkeypatch, capsys, name):
    clips = LAYOUTS[name](tmp_path)
    fitted(monkeypatch, name, clips)
    broken, gone = ((tmp_path / tasks.get(name).layouts[0].folders[0] / file) for file in list(clips)[:2])
    broken.write_bytes(b"no sound")
    gone.unlink()
    assert main(["tasks", "check", name, "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{name}: {broken}: " in said
    assert gone.name in said or f"holds {len(clips) - 1} clips" in said  # what AudioSet's copy lacks is not listed


@pytest.mark.parametrize("name", ["vc1", "icbhi2017", "as20k"])
def test_a_miniature_is_scored(tmp_path, monkeypatch, capsys, small_model, name):
    fitted(monkeypatch, name, LAYOUTS[name](tmp_path))
    words = ["--data", tmp_path, "--runs", tmp_path / "runs", "--clip-seconds", "0.1", "--seeds", "1", "--epochs", "1"]
    code = main(["linear", "--model", *map(str, (small_model, "--tasks", name, *words, "--format", "csv"))])
    assert (code, name in capsys.readouterr().out) == (0, True)


def test_a_huge_set_scores_what_it_would_if_it_were_read_first(tmp_path, monkeypatch, small_model):
    as2m(tmp_path)
    monkeypatch.setattr(embeddings, "_SHARD", 2)
    monkeypatch.setattr(embeddings, "_PART", 4)
    runs = []
    for huge in (1, 10**9):
        monkeypatch.setattr(task_module, "_HUGE", huge)
        folders = {"data": tmp_path, "cache": tmp_path / f"{huge}", "runs": tmp_path / f"runs-{huge}"}
        runs += linear(small_model, "as2m", **folders, clip_seconds=0.1, seeds=1, epochs=2)
    assert runs[0].task == runs[1].task
    assert [score.valid_score for score in runs[0].scores] == [score.valid_score for score in runs[1].scores]
