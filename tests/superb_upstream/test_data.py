"""What settings name of the data: found, missed with what to do, and told from other data."""

import numpy as np
import pytest

from m2d_bench.errors import DataError
from m2d_bench.superb_upstream import data, launcher
from m2d_bench.superb_upstream.libriphone import LibriPhoneDataset
from m2d_bench.superb_upstream.norm_stats import TASKS
from m2d_bench.superb_upstream.runner import limit_workers
from tests.superb_upstream.superb_data import WRITERS, write

SHORT = {"ks": {"clips": 2}, "sid": {"speakers": 2}, "asv": {"speakers": 2}}


def written(task, root):
    """A data folder with a task's miniature, and the settings that name it."""
    root.mkdir(exist_ok=True)
    WRITERS[task](root, **SHORT.get(task, {}))
    return root, launcher.config_of(TASKS[task].downstream, root)


def fingerprint(task, config):
    return data.fingerprint(TASKS[task].downstream, config)


@pytest.mark.parametrize("task", WRITERS)
def test_a_fingerprint_is_of_the_clips_wherever_they_lie(task, tmp_path):
    root, config = written(task, tmp_path / "a")
    first = fingerprint(task, config)
    assert len(first) == 16
    for path in list(root.rglob("*.scp")):
        path.write_text(path.read_text().replace(str(root), str(tmp_path / "b")))
    moved = root.rename(tmp_path / "b")
    config = launcher.config_of(TASKS[task].downstream, moved)
    assert fingerprint(task, config) == first
    sound = min(path for path in moved.rglob("*") if path.suffix in (".wav", ".flac"))
    content = sound.read_bytes()
    write(sound, np.zeros(len(content)))
    assert fingerprint(task, config) != first
    sound.write_bytes(content)
    assert fingerprint(task, config) == first
    lists = [path for path in moved.rglob("*") if path.suffix in (".txt", ".csv", ".json")]
    for path in lists:
        path.write_text(path.read_text().replace("1", "2"))
    assert (fingerprint(task, config) != first) == bool(lists)


def test_clips_of_the_same_names_and_sizes_are_told_apart(tmp_path):
    root, config = written("ks", tmp_path / "a")
    first = fingerprint("ks", config)
    for path in root.rglob("*.wav"):
        content = path.read_bytes()
        path.write_bytes(content[:44] + bytes(len(content) - 44))
    assert fingerprint("ks", config) != first


@pytest.mark.parametrize("task", WRITERS)
def test_missing_data_says_what_to_do(task, tmp_path):
    _, config = written(task, tmp_path / "a")
    data.check(TASKS[task].downstream, config)
    says = {"er": "python -m s3prl.downstream.emotion.IEMOCAP_preprocess", "ss": "data_prepare.py", "pr": "wget"}
    for place in list(data._places(TASKS[task].downstream, data._read(config))):
        moved = place.rename(tmp_path / "moved")
        with pytest.raises(DataError, match=f"{place} does not exist.*https?://.*{says.get(task, '')}"):
            data.check(TASKS[task].downstream, config)
        moved.rename(place)
    empty = launcher.config_of(TASKS[task].downstream, tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path}"):
        data.check(TASKS[task].downstream, empty)


@pytest.mark.parametrize("task", ["ic", "sid", "asv", "er", "ss"])
def test_so_do_clips_that_lists_name(task, tmp_path):
    root, config = written(task, tmp_path / "a")
    clip = max((root / "VoxCeleb1" / "test" if task == "asv" else root).rglob("*.wav"))
    clip.unlink()
    if task == "sid":  # its lists name no clips of test/
        max((root / "VoxCeleb1" / "dev").rglob("*.wav")).unlink()
    with pytest.raises(
        DataError, match=r"\.wav, which the lists name, does not exist, nor do 0 others. (Ask for|Generate)"
    ):
        data.check(TASKS[task].downstream, config)


def test_an_empty_folder_is_missing_data(tmp_path):
    (tmp_path / "speech_commands_v0.01").mkdir()
    with pytest.raises(DataError, match=r"speech_commands_v0\.01 holds no files"):
        data.check("speech_commands", launcher.config_of("speech_commands", tmp_path))
    with pytest.raises(DataError, match="the settings name no file_path under downstream_expert"):
        data.check("voxceleb1", {"downstream_expert": {"datarc": {"file_pth": "/nowhere"}, "text": None}})


@pytest.mark.parametrize(
    "expert", [{"datarc": {"path": "/nowhere"}}, {"corpus": {"name": "snips"}, "text": None}, None]
)
@pytest.mark.parametrize("downstream", ["asr", "ctc"])
def test_what_is_no_task_of_superb_is_not_checked(downstream, expert):
    data.check(downstream, {"downstream_expert": expert})
    assert data.fingerprint(downstream, {"downstream_expert": expert}) == ""


def test_places_of_s3prls_own_files_are_found_here_or_in_s3prl(tmp_path, monkeypatch):
    pytest.importorskip("s3prl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lexicon").mkdir()
    here = data.located({"a": {"lists": ["lexicon/..", "nowhere/x"], "vocab": "downstream/ctc/vocab/phoneme.txt"}})
    assert here["a"] == {"lists": [str(tmp_path / "lexicon/.."), "nowhere/x"], "vocab": str(data.PHONEMES)}
    in_s3prl = data.located({"file": "./downstream/model.py", "name": "ctc", "number": 1})
    assert in_s3prl["file"].endswith("s3prl/downstream/model.py")
    assert (in_s3prl["name"], in_s3prl["number"]) == ("ctc", 1)


def test_phonemes_are_s3prls_so_that_its_heads_fit():
    phonemes = data.PHONEMES.read_text().split()
    assert phonemes[:3] == ["SIL", "SPN", "AA0"]
    assert len(phonemes) == len(set(phonemes)) == 71


class Tokenizer:
    """Stands for s3prl's text encoder."""

    def __init__(self):
        self._vocab2idx = {phoneme: index for index, phoneme in enumerate(data.PHONEMES.read_text().split(), 3)}

    def encode(self, text):
        return [self._vocab2idx[phoneme] for phoneme in text.split()]


def test_phonemes_are_read_of_one_split_several_or_a_list(tmp_path):
    root, config = written("pr", tmp_path / "a")
    corpus = config["downstream_expert"]["corpus"]

    def clips(split, **where):
        return LibriPhoneDataset(split, Tokenizer(), 1, corpus["lexicon"], **where).clips

    one = clips("dev-clean", path=corpus["path"])
    assert clips(["dev-clean"], path=corpus["path"]) == one
    assert len(clips(["dev-clean", "test-clean"], path=corpus["path"])) == 8
    assert clips("dev-clean.csv", csv_dir=write_lists(root)) == one


def write_lists(root):
    """Lists of PR's splits in a folder, as s3prl's own settings read them."""
    folder = root / "lists"
    folder.mkdir()
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        (transcript,) = (root / "LibriSpeech" / split).rglob("*.txt")
        rows = [line.split(" ", 1) for line in transcript.read_text().splitlines()]
        lines = [f"{transcript.parent / name}.flac,{words}" for name, words in rows]
        (folder / f"{split}.csv").write_text("\n".join(["wav_path,transcription", *lines]) + "\n")
    return str(folder)


def test_lists_of_phonemes_count_by_their_words_and_clips_wherever_those_lie(tmp_path):
    root, config = written("pr", tmp_path / "a")
    corpus = config["downstream_expert"]["corpus"]
    del corpus["path"]
    corpus |= {"train": "train-clean-100.csv", "dev": "dev-clean.csv", "test": "test-clean.csv"}
    corpus["csv_dir"] = write_lists(root)
    data.check("ctc", config)
    first = fingerprint("pr", config)
    moved = root.rename(tmp_path / "b")
    with pytest.raises(DataError, match=r"lists/train-clean-100\.csv does not exist"):
        data.check("ctc", config)
    corpus["lexicon"] = [path.replace(str(root), str(moved)) for path in corpus["lexicon"]]
    corpus["csv_dir"] = str(moved / "lists")
    with pytest.raises(DataError, match=r"0\.flac, which the lists name, does not exist, nor do 27 others"):
        data.check("ctc", config)
    lists = sorted((moved / "lists").iterdir())
    for path in lists:
        path.write_text(path.read_text().replace(str(root), str(moved)))
    assert fingerprint("pr", config) == first
    lists[0].write_text(lists[0].read_text().replace("BEE", "TEA"))
    assert fingerprint("pr", config) != first


def test_no_more_workers_than_cores():
    settings = {"datarc": {"num_workers": 10**6, "batch_size": 8}, "num_workers": 0}
    limit_workers(settings)
    assert 1 <= settings["datarc"]["num_workers"] < 10**6
    assert (settings["datarc"]["batch_size"], settings["num_workers"]) == (8, 0)
