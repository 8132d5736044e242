"""Records keep every raw score, whoever writes and whatever dies."""

import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest

from m2d_bench import runs
from m2d_bench.errors import RunError, UsageError
from m2d_bench.runs import Predictions, Run, Score
from m2d_bench.settings import file_name, replacing

RUN = Run(
    encoder={"name": "random:m2d_vit_tiny-80x208p16x16", "digest": "0123456789abcdef"},
    task={
        "name": "esc10",
        "version": 1,
        "fingerprint": "f",
        "metric": "accuracy",
        "other_metrics": [],
        "domain": "environment",
        "synthetic": False,
        "n_folds": 2,
    },
    protocol="linear",
    settings={"epochs": 200},
    repeated=("initialisation",),
    seconds={"embedding": 2.0},
)


def scored(seed, *folds, score=0.5):
    return replace(
        RUN, scores=tuple(Score(seed=seed, fold=fold, score=score, n_test=10, seconds=1.0) for fold in folds)
    )


def add(arguments):
    folder, seed = arguments
    runs.add(scored(seed, "1", "2"), folder)


def test_what_is_written_is_what_is_read(tmp_path):
    written = runs.add(scored(42, "1", "2"), tmp_path)
    assert runs.load(RUN.path(tmp_path)) == written
    assert written.schema == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_seeds_add_up_and_repeated_ones_are_replaced(tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path)
    runs.add(scored(43, "1", "2"), tmp_path)
    found = runs.add(scored(42, "2", score=0.9), tmp_path)
    assert [(s.seed, s.fold, s.score) for s in found.scores] == [
        (42, "1", 0.5),
        (42, "2", 0.9),
        (43, "1", 0.5),
        (43, "2", 0.5),
    ]


def test_a_seed_is_done_when_all_its_folds_are():
    run = replace(RUN, scores=(*scored(42, "1", "2").scores, *scored(43, "1").scores))
    assert run.done(2) == {42}


def test_identity_is_encoder_task_protocol_and_settings():
    others = [
        replace(RUN, encoder={**RUN.encoder, "digest": "f" * 16}),
        replace(RUN, task={**RUN.task, "fingerprint": "g"}),
        replace(RUN, protocol="knn"),
        replace(RUN, settings={"epochs": 100}),
    ]
    assert len({RUN.key, *(other.key for other in others)}) == 5
    assert replace(RUN, seconds={}, environment={"device": "cuda"}).key == RUN.key


def test_several_processes_lose_nothing(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(add, [(tmp_path, seed) for seed in range(24)]))
    assert runs.load(RUN.path(tmp_path)).done(2) == set(range(24))


def test_broken_and_newer_records_are_named_and_left_alone(tmp_path):
    path = tmp_path / "run.json"
    for content in ("{", "[]", "{}", json.dumps({"schema": 1, "scores": [], "colour": 1})):
        path.write_text(content)
        with pytest.raises(RunError, match=r"run\.json: not a run record"):
            runs.load(path)
        assert path.read_text() == content
    path.write_text(json.dumps({"schema": 99, "scores": []}))
    with pytest.raises(RunError, match="Update m2d-bench"):
        runs.load(path)


def test_records_of_schema_1_are_upgraded_and_keep_their_identity(tmp_path):
    path = RUN.path(tmp_path)
    now = runs.add(scored(42, "1", "2"), tmp_path)
    values = json.loads(path.read_text())
    del values["command"], values["task"]["other_metrics"], values["task"]["domain"]
    path.write_text(json.dumps({**values, "schema": 1}))
    earlier = runs.load(path)
    assert earlier.schema == 4
    assert earlier.command == ""
    assert earlier.task["domain"] == "other"
    assert earlier.key == now.key
    assert runs.add(scored(43, "1", "2"), tmp_path).done(2) == {42, 43}


def test_records_of_before_classes_were_told_are_read_and_added_to(tmp_path):
    path = RUN.path(tmp_path)
    runs.add(scored(42, "1", "2"), tmp_path)
    values = json.loads(path.read_text())
    for score in values["scores"]:
        del score["per_class"]
    path.write_text(json.dumps({**values, "schema": 3}))
    assert runs.load(path).scores == scored(42, "1", "2").scores
    (new,) = scored(43, "1").scores
    new = replace(new, per_class={"owl": {"mAP": 0.25, "aucroc": 0.5}, "wren": {}})
    assert runs.add(replace(RUN, scores=(new,)), tmp_path).by_fold[43, "1"] == new == runs.load(path).scores[-1]


def test_thirty_seeds_on_the_classes_of_audioset_are_a_record_below_two_megabytes(tmp_path):
    classes = {f"/m/0{number:05d}": {"mAP": 0.12345, "aucroc": 0.98765, "d_prime": 2.34567} for number in range(527)}
    scores = [replace(score, per_class=classes) for seed in range(30) for score in scored(seed, "test").scores]
    run = replace(RUN, task={**RUN.task, "n_folds": 1}, scores=tuple(scores))
    runs.add(run, tmp_path)
    assert run.path(tmp_path).stat().st_size < 2e6


def test_reading_a_folder_names_what_is_broken(tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    found, failures = runs.read(tmp_path)
    assert list(found) == [RUN.path(tmp_path)]
    assert len(failures) == 1
    assert "broken.json: not a run record" in failures[0]
    with pytest.raises(UsageError, match="no such folder of run records"):
        runs.read(tmp_path / "nowhere")


def test_predictions_are_kept_beside_the_record(tmp_path):
    rng = np.random.default_rng(0)
    for seed, fold in ((43, "1"), (42, "2")):
        scores = rng.normal(size=(4, 3)).astype(np.float16)
        predictions = Predictions(
            seed=seed,
            fold=fold,
            clips=np.arange(4),
            labels=np.array([0, 1, 2, 0]),
            scores=scores,
            valid_scores=np.array([0.1, 0.2]),
            classes=np.array(["a", "b", "c"]),
        )
        runs.save_predictions(RUN, tmp_path, predictions)
    found = runs.load_predictions(RUN.path(tmp_path))
    assert [(each.seed, each.fold) for each in found] == [(42, "2"), (43, "1")]
    assert np.array_equal(found[0].scores, scores)
    assert found[0].classes.tolist() == ["a", "b", "c"]
    assert runs.load_predictions(RUN.path(tmp_path / "nowhere")) == []


def test_replaced_scores_lose_their_predictions_and_environments_are_all_kept(tmp_path):
    first = replace(scored(42, "1", "2"), environment={"device": "cpu"})
    runs.add(first, tmp_path)
    for fold in "12":
        runs.save_predictions(RUN, tmp_path, predictions(42, fold))
    found = runs.add(replace(scored(42, "1", score=0.7), environment={"device": "cuda"}), tmp_path)
    assert [each.fold for each in runs.load_predictions(RUN.path(tmp_path))] == ["2"]
    assert found.environment == {"device": "cpu", "also": [{"device": "cuda"}]}
    again = runs.add(replace(scored(43, "1"), environment={"device": "cuda"}), tmp_path)
    assert again.environment == found.environment
    assert runs.add(scored(42, "2", score=0.1), tmp_path, replacing_scores=False).scores[1].score == 0.5


def test_copies_of_a_record_count_once(tmp_path, caplog):
    runs.add(scored(42, "1", "2"), tmp_path)
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "copy.json").write_bytes(RUN.path(tmp_path).read_bytes())
    runs.add(scored(42, "1", "2", score=0.9), tmp_path)
    (record,) = runs.read(tmp_path)[0].values()
    assert [score.score for score in record.scores] == [0.9, 0.9]  # of what lies in its own path
    assert "the same record as" in caplog.text


def renamed(run, name):
    return replace(run, encoder={**run.encoder, "name": name})


def old_path(run, folder):
    """Where schemas 1 and 2 kept a record."""
    encoder = file_name(f"{run.encoder['name']}-{run.encoder['digest'][:8]}")
    return folder / encoder / run.task["name"] / run.path(folder).name


def in_old_folder(run, folder, schema=2, predicted=()):
    """Writes a record as it was before schema 3, with its predictions."""
    path = old_path(run, folder)
    values = json.loads(json.dumps(asdict(run)))
    with replacing(path) as file:
        file.write(json.dumps({**values, "schema": schema}).encode())
    for seed in predicted:
        runs.save_predictions(run, folder / "elsewhere", predictions(seed, "1"))
        new = run.path(folder / "elsewhere").with_suffix("") / f"{seed}-1.npz"
        (path.with_suffix("")).mkdir(exist_ok=True)
        new.rename(path.with_suffix("") / new.name)
    shutil.rmtree(folder / "elsewhere", ignore_errors=True)
    return path


def predictions(seed, fold):
    arrays = {"labels": np.zeros(1), "scores": np.zeros((1, 2)), "valid_scores": np.zeros(1), "clips": np.zeros(1)}
    return Predictions(seed=seed, fold=fold, classes=np.array(["a", "b"]), **arrays)


def test_a_models_names_share_one_record(tmp_path):
    runs.add(renamed(scored(42, "1", "2"), "m2d_tiny"), tmp_path)
    other = renamed(scored(43, "1", "2"), "random:m2d_tiny")
    runs.add(other, tmp_path)
    assert other.path(tmp_path) == tmp_path / "0123456789abcdef" / "esc10" / f"linear-{RUN.key}.json"
    (record,) = runs.read(tmp_path)[0].values()
    assert record.done(2) == {42, 43}
    assert record.names == ("m2d_tiny", "random:m2d_tiny")
    assert runs.load_as(other, tmp_path).encoder["name"] == "random:m2d_tiny"
    runs.load_as(renamed(RUN, "weights.pth"), tmp_path)
    assert runs.load(RUN.path(tmp_path)).names == ("m2d_tiny", "random:m2d_tiny", "weights.pth")


def test_old_folders_of_one_identity_are_read_as_one_and_merged_when_it_is_written(tmp_path):
    first, second = renamed(scored(42, "1", "2"), "m2d_tiny"), renamed(scored(43, "1", "2"), "random:m2d_tiny")
    old = [in_old_folder(first, tmp_path, schema=1, predicted=[42]), in_old_folder(second, tmp_path, predicted=[43])]
    (path, record), *others = runs.read(tmp_path)[0].items()
    assert not others
    assert record.done(2) == {42, 43}
    assert [each.seed for each in runs.load_predictions(path)] == [42, 43]
    assert [each.seed for each in runs.load_predictions(RUN.path(tmp_path))] == [42, 43]
    assert all(path.exists() for path in old)  # reading writes nothing

    runs.add(renamed(scored(44, "1", "2"), "m2d_tiny"), tmp_path)
    assert runs.load(RUN.path(tmp_path)).done(2) == {42, 43, 44}
    assert [each.seed for each in runs.load_predictions(RUN.path(tmp_path))] == [42, 43]
    assert not any(path.parent.parent.exists() for path in old)


def test_a_merge_that_is_killed_loses_nothing(tmp_path, monkeypatch):
    old = in_old_folder(scored(42, "1", "2"), tmp_path, predicted=[42])
    new = RUN.path(tmp_path)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.add(scored(43, "1", "2"), tmp_path)
    for _ in range(2):
        assert [run.done(2) for run in runs.read(tmp_path)[0].values()] == [{42, 43}]
        assert [each.seed for each in runs.load_predictions(new)] == [42]
        runs.add(scored(43, "1", "2"), tmp_path)
    assert not old.exists()


def test_predictions_of_scores_that_lost_are_not_merged(tmp_path):
    runs.add(scored(42, "1", score=0.5), tmp_path)
    in_old_folder(scored(42, "1", score=0.6), tmp_path, predicted=[42])
    record = runs.add(scored(43, "1"), tmp_path)
    assert [score.score for score in record.scores] == [0.5, 0.5]
    assert runs.load_predictions(RUN.path(tmp_path)) == []


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("task", "n_folds", None),
        ("task", "n_folds", True),
        ("task", "n_folds", 5.0),
        ("encoder", "name", None),
        ("task", "synthetic", "no"),
    ],
)
def test_what_every_reader_relies_on_is_checked(part, name, value, tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path)
    path = RUN.path(tmp_path)
    values = json.loads(path.read_text())
    values[part][name] = value
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match=f"{part}.{name}"):
        runs.load(path)
    values[part][name] = getattr(RUN, part)[name]
    values["scores"][0]["score"] = "high"
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="'high'"):
        runs.load(path)
    values["scores"][0]["score"] = 0.5
    path.write_text(json.dumps({**values, "command": "", "colour": 1}))
    with pytest.raises(RunError, match="colour"):
        runs.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"nothing"])
def test_broken_predictions_are_named(content, tmp_path):
    file = RUN.path(tmp_path).with_suffix("") / "42-1.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"42-1\.npz: no predictions"):
        runs.load_predictions(RUN.path(tmp_path))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("command",), ["m2d-bench"]),
        (("created",), 20250101),
        (("protocol",), "/etc/cron.d/linear"),
        (("protocol",), "a/b"),
        (("protocol",), "..\\linear"),
        (("encoder", "digest"), ".."),
        (("encoder", "digest"), "../0123456789abcdef"),
        (("encoder", "aliases"), "m2d_tiny"),
        (("task", "name"), "../../esc10"),
        (("task", "name"), "x" * 300),
        (("task", "n_folds"), 10**400),
        (("task", "other_metrics"), None),
        (("settings", "train_fraction"), "half"),
        (("environment", "also"), 5),
        (("seconds", "embedding"), None),
        (("scores", 0, "seed"), 10**30),
        (("scores", 0, "fold"), 1),
        (("scores", 0, "score"), -1e300),
        (("scores", 0, "score"), "0.5"),
        (("scores", 0, "score"), math.inf),
        (("scores", 0, "valid_score"), math.nan),
        (("scores", 0, "others"), {"mAP": [0.5]}),
        (("scores", 0, "per_class"), {"owl": 0.5}),
        (("scores", 0, "per_class"), {"owl": {"mAP": math.nan}}),
        (("scores", 0, "n_test"), -1),
        (("scores",), {}),
        (("schema",), 0),
        (("schema",), [3]),
    ],
)
def test_a_record_of_another_form_is_named_and_left_out(keys, value, tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path)
    values = json.loads(RUN.path(tmp_path).read_text())
    (tmp_path / "odd.json").write_text(json.dumps(values))
    part = values
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (tmp_path / "odd.json").write_text(json.dumps(values))
    found, (failure,) = runs.read(tmp_path)
    assert list(found) == [RUN.path(tmp_path)]
    assert "odd.json: not a run record" in failure
    assert len(failure) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"schema": 3, "settings": ' + b'{"a":' * 5000,
        b'{"schema": 3' + b"0" * 5000 + b"}",
        b'"3"',
        b"null",
    ],
    ids=["no UTF-8", "deep list", "deep and cut", "long number", "text", "null"],
)
def test_files_that_hold_no_record_are_named(content, tmp_path):
    (tmp_path / "odd.json").write_bytes(content)
    found, (failure,) = runs.read(tmp_path)
    assert not found
    assert "odd.json: not a run record" in failure


def test_folders_pipes_and_links_in_circles_are_named(tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "circle.json").symlink_to("circle.json")
    os.mkfifo(tmp_path / "pipe.json")
    found, failures = runs.read(tmp_path)
    assert len(found) == 1
    assert [name for name in ("circle", "folder", "pipe") if any(f"{name}.json" in each for each in failures)] == [
        *("circle", "folder", "pipe")
    ]


def test_what_would_be_no_record_is_not_written(tmp_path):
    before = runs.add(scored(42, "1", "2"), tmp_path)
    with pytest.raises(RunError, match=r"not written.*NaN"):
        runs.add(scored(43, "1", score=math.nan), tmp_path)
    assert runs.load(RUN.path(tmp_path)) == before


@pytest.mark.parametrize(
    "changes",
    [{"scores": np.zeros(4)}, {"labels": np.array([9])}, {"clips": np.zeros(3)}, {"scores": np.full((1, 2), np.nan)}],
)
def test_predictions_of_another_form_are_named(changes, tmp_path):
    runs.save_predictions(RUN, tmp_path, replace(predictions(42, "1"), **changes))
    with pytest.raises(RunError, match=r"42-1\.npz: no predictions"):
        runs.load_predictions(RUN.path(tmp_path))
