"""The data of SUPERB's tasks: what a settings file names of it, whether it is there, and a fingerprint of the clips."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from m2d_bench import files
from m2d_bench.errors import DataError
from m2d_bench.superb_upstream.libriphone import read_list

SECTIONS = ("datarc", "corpus", "loaderrc", "text")
"""Parts of `downstream_expert` in a settings file that say what is read."""

PHONEMES = Path(__file__).parent / "configs" / "phonemes.txt"

_SAMPLED = 64
"""Sound files whose content counts in a fingerprint, spread evenly; of the others, name and size."""


class Source(NamedTuple):
    """Where a task's data comes from.

    Args:
        places: Files and folders that are read, with the settings' keys in braces.
        how: What to download and which commands prepare it, with the same keys.
    """

    places: tuple[str, ...]
    how: str


_LEXICONS = "https://huggingface.co/datasets/s3prl/g2p/resolve/main/lexicon/librispeech-lexicon"
_VOXCELEB = (
    "Ask for VoxCeleb1 at https://www.robots.ox.ac.uk/~vgg/data/voxceleb, then run: cat vox1_dev_wav_parta* > "
    "vox1_dev_wav.zip && unzip vox1_dev_wav.zip -d {file_path}/dev && unzip vox1_test_wav.zip -d {file_path}/test && "
    "wget -P {file_path} https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/"
)

SOURCES = {
    "ctc": Source(
        (
            *(f"{{{root}}}/{{{split}}}" for root in ("path", "csv_dir") for split in ("train", "dev", "test")),
            *("{lexicon}", "{vocab_file}"),
        ),
        "Download train-clean-100, dev-clean and test-clean from https://www.openslr.org/12 and unpack each with tar "
        f"xzf; the lists of words: wget {_LEXICONS}-200k-g2p.txt {_LEXICONS}-allothers-g2p.txt; those of a csv_dir, in "
        "s3prl/ of a clone: python preprocess/preprocess_superb_pr.py /path/to/LibriSpeech --csv_dir DIR",
    ),
    "speech_commands": Source(
        ("{speech_commands_root}", "{speech_commands_test_root}"),
        "Download speech_commands_v0.01.tar.gz and speech_commands_test_set_v0.01.tar.gz from "
        "http://download.tensorflow.org/data, then run: mkdir -p {speech_commands_root} {speech_commands_test_root} && "
        "tar xzf speech_commands_v0.01.tar.gz -C {speech_commands_root} && tar xzf "
        "speech_commands_test_set_v0.01.tar.gz -C {speech_commands_test_root}",
    ),
    "fluent_commands": Source(
        ("{file_path}/data", "{file_path}/wavs"),
        "Ask for Fluent Speech Commands at https://fluent.ai and unpack it as {file_path}.",
    ),
    "voxceleb1": Source(("{file_path}/dev/wav", "{file_path}/test/wav", "{meta_data}"), f"{_VOXCELEB}iden_split.txt"),
    "sv_voxceleb1": Source(
        ("{file_path}/dev/wav", "{file_path}/test/wav", "{dev_meta_data}", "{test_meta_data}"),
        f"{_VOXCELEB}veri_test2.txt",
    ),
    "emotion": Source(
        (*(f"{{root}}/Session{number}/sentences/wav" for number in range(1, 6)), "{meta_data}"),
        "Ask for IEMOCAP at https://sail.usc.edu/iemocap and unpack it, then run: python -m "
        "s3prl.downstream.emotion.IEMOCAP_preprocess {root}",
    ),
    "separation_stft2": Source(
        tuple(f"{{{split}_dir}}/{part}" for split in ("train", "dev", "test") for part in ("mix_clean", "s1", "s2")),
        "Generate Libri2Mix with https://github.com/HuangZiliAndy/LibriMix, then run in a clone of s3prl, for PART of "
        "train-100, dev and test: python s3prl/downstream/separation_stft2/scripts/LibriMix/data_prepare.py --part "
        "PART /path/to/Libri2Mix lists; and at last: cp -r lists/wav16k /path/to/Libri2Mix",
    ),
}
"""By s3prl's name of the task."""


def check(downstream: str, config: Mapping[str, Any]) -> None:
    """Refuses settings of a SUPERB task whose data is not there.

    Args:
        downstream: s3prl's name of the task.
        config: The settings.

    Raises:
        DataError: Names the first place that is missing or empty, or listed clip that is missing, what to download, and
            which command prepares it.
    """
    if not is_superb(downstream, config):
        return
    values = _read(config)
    try:
        how = SOURCES[downstream].how.format_map(values)
        for place in _places(downstream, values):
            fault = "does not exist" if not place.exists() else "" if any(_listed(place)) else "holds no files"
            if fault:
                raise DataError(f"{downstream}: {place} {fault}. {how}")
        missing = _missing_clips(downstream, values)
    except KeyError as error:
        raise DataError(
            f"{downstream}: the settings name no {error.args[0]} under downstream_expert, such as datarc. Write it "
            f"there, as {downstream}.yaml of m2d_bench/superb_upstream/configs does."
        ) from None
    if missing:
        raise DataError(
            f"{downstream}: {missing[0]}, which the lists name, does not exist, nor do {len(missing) - 1} others. {how}"
        )


def fingerprint(downstream: str, config: Mapping[str, Any]) -> str:
    """Identity of a task's clips and lists, wherever they lie: 16 hexadecimal digits, or none if it is not SUPERB's.

    Lists count by their content, sound files by name and size, and some of them, spread evenly, by content.
    """
    if not is_superb(downstream, config):
        return ""
    sha = hashlib.sha256()
    clips = []
    for number, place in enumerate(_places(downstream, _read(config))):
        for name, path in _listed(place):
            sha.update(f"{number} {name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
            if path.suffix in (".csv", ".json", ".txt"):
                sha.update(path.read_bytes())
            else:
                clips.append(path)
    for path in clips[:: len(clips) // _SAMPLED + 1]:
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def is_superb(downstream: str, config: Mapping[str, Any]) -> bool:
    """Whether settings are of a task of SUPERB; s3prl's ctc reads other corpora too."""
    return downstream in SOURCES and (downstream != "ctc" or str(_read(config).get("name")).lower() == "libriphone")


def located(config: dict[str, Any]) -> dict[str, Any]:
    """Settings whose places are absolute, so that an experiment goes on wherever it is called from.

    A relative one is sought in the current folder and then in s3prl's own, as s3prl's settings files mean it; where
    s3prl comes without its list of phonemes, ours stands for it.
    """
    package = find_spec("s3prl")
    roots = [Path.cwd(), *map(Path, (package and package.submodule_search_locations) or ())]

    def locate(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: locate(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [locate(inner) for inner in value]
        if not is_place(value):
            return value
        there = [root / value for root in roots if (root / value).exists()]
        if not there and value.endswith("ctc/vocab/phoneme.txt"):
            there = [PHONEMES]
        return str(there[0]) if there else value

    return {key: locate(value) for key, value in config.items()}


def is_place(value: Any) -> bool:
    """Whether a setting is a path, or a list that holds one."""
    return (isinstance(value, str) and "/" in value) or (isinstance(value, list) and any(map(is_place, value)))


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of the data, by key."""
    expert = config.get("downstream_expert") or {}
    return {key: value for section in SECTIONS for key, value in (expert.get(section) or {}).items()}


def _missing_clips(downstream: str, values: Mapping[str, Any]) -> list[str]:
    """Clips that a task's lists name and that are not there; none of KS, which has no lists."""
    if downstream == "voxceleb1":
        names = [line.split()[1] for line in Path(values["meta_data"]).read_text().splitlines()]
        for part in ("dev", "test"):
            names = files.missing_files(Path(values["file_path"], part, "wav"), names)
        return names
    if downstream == "sv_voxceleb1":
        trials = Path(values["test_meta_data"]).read_text().splitlines()
        names = sorted({name for trial in trials for name in trial.split()[1:3]})
        return files.missing_files(Path(values["file_path"], "test", "wav"), names)
    if downstream == "fluent_commands":
        lists = [Path(values["file_path"], "data", f"{split}_data.csv") for split in ("train", "valid", "test")]
        names = [name for file in lists for name in pd.read_csv(file)["path"]]
        return files.missing_files(Path(values["file_path"]), names)
    if downstream == "emotion":
        lists = sorted(Path(values["meta_data"]).glob("*/*_meta_data.json"))
        names = [clip["path"] for file in lists for clip in json.loads(file.read_text())["meta_data"]]
        return files.missing_files(Path(values["root"]), list(dict.fromkeys(names)))
    if downstream in ("ctc", "separation_stft2"):
        names = [str(path) for place in _places(downstream, values) for _, path in _listed(place)]
        return files.missing_files(Path(), names)
    return []


def _places(downstream: str, values: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders of a task's data; a key whose value is a list gives one for each."""
    for pattern in SOURCES[downstream].places:
        keys = re.findall(r"{(\w+)}", pattern)
        lists = [value if isinstance(value := values.get(key, []), list) else [value] for key in keys]
        for combination in product(*lists):
            yield Path(pattern.format_map(dict(zip(keys, combination, strict=True))))


def _listed(place: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file of a place; for a list that says where clips lie, what it says of them and those."""
    names = {place.name: place} if place.is_file() else {name: place / name for name in files.find(place)[0]}
    for name, path in names.items():
        if path.name == "wav.scp":
            lines = filter(None, map(str.split, path.read_text().splitlines()))
            yield from ((clip, Path(where)) for clip, where, *_ in lines)
        elif path.suffix == ".csv" and "wav_path" in path.read_text(encoding="utf-8").partition("\n")[0]:
            yield from ((f"{clip.name} {' '.join(words)}", clip) for clip, words in read_list(path))
        else:
            yield name, path
