"""The main job end to end: scores by the protocol, every finished seed kept, nothing computed twice."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from m2d_bench import linear, runs, tasks
from m2d_bench.errors import UsageError
from m2d_bench.evaluation import embeddings
from m2d_bench.evaluation import linear as evaluation
from m2d_bench.registry import resolve
from m2d_bench.results.statistics import estimate, seed_means
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Compute, Storage
from m2d_bench.tasks import dataset
from tests.conftest import small_encoder, write_tones
from tests.evaluation.test_embeddings import Counting

MODEL = "random:m2d_vit_tiny-80x208p16x16"


@pytest.fixture
def settings(tmp_path, tones):
    return {
        "data": tones,
        "runs": tmp_path / "runs",
        "device": "cpu",
        "precision": "fp32",
        "epochs": 30,
        "learning_rate": 1e-3,
    }


def loaded(tones):
    """The miniature's clips, and their embeddings."""
    storage = Storage(data=tones)
    data = dataset.load(tasks.get("esc10"), storage)
    return data, embeddings.encode(small_encoder(), data, Compute(device="cpu", precision="fp32"), storage)


def scores(run):
    return {(score.seed, score.fold): score.score for score in run.scores}


def test_separable_tones_are_told_apart_on_every_seed_and_fold(settings):
    (run,) = linear(small_encoder(), "esc10", seeds=2, **settings)
    assert set(scores(run)) == {(seed, str(fold)) for seed in (42, 43) for fold in range(1, 6)}
    assert np.mean(list(scores(run).values())) > 0.9
    assert {score.n_test for score in run.scores} == {80}
    assert run.repeated == ("initialisation", "shuffling", "validation split")
    assert run.settings["probe_precision"] == "fp32"
    assert torch.__version__.startswith(run.environment["versions"]["torch"].split("+")[0])


@pytest.mark.slow
def test_names_of_the_same_weights_share_their_seeds(settings, monkeypatch):
    one, two = "random:m2d_vit_tiny-80x48p16x16", "random:m2d_s_vit_tiny-80x48p16x16"
    first = linear(one, "esc10", seeds=3, **settings)[0]
    other = linear(two, "esc10", first_seed=45, seeds=3, **settings)[0]
    monkeypatch.setattr(evaluation, "run_probes", None)
    (both,) = linear(two, "esc10", seeds=6, **settings)
    assert scores(both) == {**scores(first), **scores(other)}
    assert both.names == (two, one)
    assert first.encoder["name"] == one
    table = resolve("m2d_bench.results:report")(runs.read(settings["runs"])[0].values(), "text")
    assert one in table
    assert "n = 6" in table or " 6 " in table


def spy_on_probes(monkeypatch):
    """The seed of every problem that is computed from now on."""
    computed, run_probes = [], evaluation.run_probes

    def spy(features, labels, problems, *args, **kwargs):
        computed.extend(problem.seed for problem in problems)
        return run_probes(features, labels, problems, *args, **kwargs)

    monkeypatch.setattr(evaluation, "run_probes", spy)
    return computed


def test_finished_seeds_are_read_and_only_missing_ones_computed(settings, monkeypatch):
    first = linear(small_encoder(), "esc10", seeds=2, **settings)[0]
    computed = spy_on_probes(monkeypatch)
    assert linear(small_encoder(), "esc10", seeds=2, **settings)[0] == first
    assert computed == []
    more = linear(small_encoder(), "esc10", seeds=3, **settings)[0]
    assert set(computed) == {44}
    assert scores(first).items() <= scores(more).items()
    assert scores(linear(small_encoder(), "esc10", seeds=2, force=True, **settings)[0]) == scores(first)
    assert set(computed) == {42, 43, 44}


def test_seeds_left_open_go_on_until_the_interval_is_narrow_whatever_was_finished(settings, monkeypatch):
    settings |= {"probe": "knn", "train_fraction": 0.2}
    (fixed,) = linear(small_encoder(), "esc10", seeds=5, **settings)
    widths = [100 * estimate(list(seed_means(fixed).values())[:n]).half_width for n in (3, 4, 5)]
    seeds = f"until={1.0001 * min(widths):.6f}"
    narrow = range(42, 42 + 3 + widths.index(min(widths)))
    assert 44 in narrow[:-1]  # else another width has to be asked for
    (again,) = linear(small_encoder(), "esc10", seeds=seeds, **settings)
    assert scores(again) == {key: score for key, score in scores(fixed).items() if key[0] in narrow}
    computed = spy_on_probes(monkeypatch)
    settings["runs"] = settings["runs"].with_name("other")
    (anew,) = linear(small_encoder(), "esc10", seeds=seeds, **settings)
    assert scores(anew) == scores(again)
    linear(small_encoder(), "esc10", seeds=seeds, force=True, **settings)
    assert computed == 2 * [seed for seed in narrow for _ in range(5)]


def test_a_baseline_is_evaluated_on_the_same_seeds_until_the_two_are_compared(settings, caplog):
    settings |= {"probe": "knn", "data": str(settings["data"])}
    first, second = linear(small_encoder(), "esc10", seeds="until=0.5", baseline="logmel", **settings)
    assert [run.encoder["name"] for run in (first, second)] == ["small", "logmel"]
    assert scores(first).keys() == scores(second).keys()
    assert "small − logmel = " in caplog.text
    assert second.command == ""  # an encoder without a name
    (first, _) = linear("logmel", "esc10", seeds="until=0.5", first_seed=48, baseline="logmel", **settings)
    assert "logmel − logmel = +0.00 ± 0.00 %: the same with every seed." in caplog.text
    assert "linear --model logmel --baseline logmel --tasks esc10 " in first.command
    assert "--seeds until=0.5" in first.command
    with pytest.raises(UsageError, match="one layer and one pooling"):
        linear("logmel", "esc10", baseline="logmel", layer="all", **settings)


def test_force_keeps_the_seeds_it_was_not_asked_for_and_times_are_kept(settings):
    before = linear(small_encoder(), "esc10", seeds=2, **settings)[0]
    linear(small_encoder(), "esc10", seeds=1, force=True, **settings)
    after = linear(small_encoder(), "esc10", seeds=2, **settings)[0]
    assert scores(after) == scores(before)
    assert after.seconds == before.seconds


def test_changed_weights_are_another_encoder(settings):
    encoder = small_encoder()
    before = linear(encoder, "esc10", seeds=1, **settings)[0]
    for parameter in encoder.parameters():
        parameter.data.zero_()
    assert np.mean(list(scores(linear(encoder, "esc10", seeds=1, **settings)[0]).values())) < 0.2
    assert np.mean(list(scores(before).values())) > 0.5


def test_a_diverged_probe_is_a_failure_not_a_score(settings):
    with pytest.raises(TasksFailed, match="diverged at seed 42"):
        linear(small_encoder(), "esc10", seeds=1, **{**settings, "learning_rate": 1e38})


def test_folders_that_cannot_be_written_are_said_before_any_work(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        linear(small_encoder(), "esc10", **{**settings, "runs": tmp_path / "file" / "runs"})


def test_a_seed_scores_the_same_alone_and_among_others(settings):
    together = scores(linear(small_encoder(), "esc10", seeds=3, **settings)[0])
    settings["runs"] = settings["runs"].with_name("other")
    alone = scores(linear(small_encoder(), "esc10", seeds=1, first_seed=43, **settings)[0])
    assert alone == {key: value for key, value in together.items() if key[0] == 43}


@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_other_probes_have_records_of_their_own(settings, probe):
    (run,) = linear(small_encoder(), "esc10", seeds=1, probe=probe, **settings)
    assert run.protocol == probe
    assert run.repeated == ("validation split",)
    assert np.mean(list(scores(run).values())) > 0.5
    assert runs.load(run.path(settings["runs"])).scores == run.scores


def test_validation_never_sees_the_test_fold(tones):
    data, embedded = loaded(tones)
    problems = list(evaluation._problems(data, embedded, [42, 43], 1.0))
    assert len(problems) == 10
    for problem in problems:
        parts = [set(embedded.clips[rows].tolist()) for rows in (problem.train, problem.valid, problem.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 400
        assert all(data.splits[clip] == problem.fold for clip in parts[2])
        assert not any(data.splits[clip] == problem.fold for clip in parts[0] | parts[1])
        assert len(parts[1]) == 32
        assert set(data.labels[list(parts[1])]) == set(range(10))
    assert not torch.equal(problems[0].valid, problems[5].valid)


def test_a_failing_task_is_named_last_and_the_others_are_done(settings):
    with pytest.raises(TasksFailed, match="us8k failed") as error:
        linear(small_encoder(), ["us8k", "esc10"], seeds=1, **settings)
    assert [run.task["name"] for run in error.value.runs] == ["esc10"]
    assert list(error.value.failures) == ["us8k"]


def test_clips_that_cannot_be_read_fail_their_task_or_are_left_out_and_told(settings, tmp_path):
    write_tones(tmp_path / "esc10", clips=400)
    settings |= {"data": tmp_path, "seeds": 1, "epochs": 2}
    (whole,) = linear(Counting(), "esc10", **settings)
    for clip in (3, 171):
        (tmp_path / f"esc10/audio/{clip}.wav").write_bytes(b"RIFF")
    with pytest.raises(TasksFailed, match=r"2 of 400 clips cannot be read.*/3\.wav.*/171\.wav"):
        linear(Counting(), "esc10", **settings)
    (rest,) = linear(Counting(), "esc10", on_bad_file="skip", **settings)
    assert list(rest.settings["left_out"]) == ["audio/3.wav", "audio/171.wav"]
    assert [score.n_test for score in rest.scores] == [79, 80, 79, 80, 80]
    assert rest.task["n_clips"] == 398
    assert "left_out" not in whole.settings
    assert rest.key != whole.key


def test_a_record_is_the_same_whether_or_not_clips_could_have_been_left_out(settings, monkeypatch):
    settings |= {"seeds": 1, "epochs": 2}
    first = linear(Counting(), "esc10", **settings)[0]
    monkeypatch.setattr(evaluation, "run_probes", None)
    assert linear(Counting(), "esc10", on_bad_file="skip", **settings)[0].key == first.key


BAD_SEEDS = ("until=", "until=0", "until=0.0", "until=-1", "until=abc", "until=nan", "until=inf", "until=1 ", "0.5", "")


def test_bad_input_is_said_before_any_work(settings):
    for wrong, message in (
        ({"task_names": "ecs10"}, "Did you mean esc10"),
        ({"task_names": ","}, "No task named"),
        ({"seed": 3}, "Did you mean seeds"),
        ({"seeds": 0}, "seeds is 0; it is a number of runs from 1, or until= and a half width above 0"),
        ({"seeds": True}, "seeds is True; it is a number"),
        ({"seeds": 2.5}, "seeds is 2.5; it is a number"),
        *(({"seeds": word}, f"seeds is '{word}'; it is a number") for word in BAD_SEEDS),
        ({"train_fraction": 1.5}, "train_fraction is 1.5; it should be less than or equal to 1"),
        ({"probe": "svm"}, "linear, knn, logreg"),
        ({"batch_size": 0}, "batch_size is 0; it should be greater than 0"),
    ):
        with pytest.raises(UsageError, match=message):
            linear(small_encoder(), **{"task_names": "esc10", **settings, **wrong})
    assert not settings["runs"].exists()


def finished_seeds(folder):
    return sorted({s.seed for path in folder.rglob("*.json") for s in runs.load(path).scores})


@pytest.mark.slow
def test_kill_9_loses_no_finished_seed_and_the_final_table_is_the_same(tmp_path, tones):
    def command(folder):
        options = f"--data {tones} --cache {tmp_path / 'cache'} --runs {tmp_path / folder} --learning-rate 1e-5"
        words = (
            f"-m m2d_bench.cli linear --model {MODEL} --tasks esc10 --epochs 100 --patience 100 {options} --format csv"
        )
        return [sys.executable, *words.split()]

    def rows(folder):
        done = subprocess.run(command(folder), capture_output=True, text=True, check=True)
        return [line.rsplit(",", 1)[0] for line in done.stdout.splitlines()]  # without seconds

    undisturbed = rows("whole")
    killed = subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not finished_seeds(tmp_path / "killed"):
        assert killed.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = finished_seeds(tmp_path / "killed")
    assert 1 <= len(before) < 6
    (path,) = (tmp_path / "killed").rglob("*.json")
    kept = {(s.seed, s.fold): s for s in runs.load(path).scores}
    assert rows("killed") == undisturbed
    after = {(s.seed, s.fold): s for s in runs.load(path).scores}
    assert len(after) == 30
    assert kept.items() <= after.items()  # seconds and all: not computed again


@pytest.mark.slow
def test_a_random_encoder_tells_faint_tones_far_above_chance(tmp_path):
    data = write_tones(tmp_path / "esc10", amplitude=0.035)
    (run,) = linear(MODEL, "esc10", data=data, cache=tmp_path / "cache", runs=tmp_path / "runs", seeds=2)
    assert 0.45 < np.mean(list(scores(run).values())) < 0.95


def test_predictions_are_kept_where_asked_for_and_agree_with_the_scores(settings):
    (run,) = linear(small_encoder(), "esc10", seeds=1, **settings)
    assert runs.load_predictions(run.path(settings["runs"])) == []
    (run,) = linear(small_encoder(), "esc10", seeds=1, keep_predictions=True, **settings)
    found = runs.load_predictions(run.path(settings["runs"]))
    assert len(found) == len(run.scores) == 5
    for predictions, score in zip(found, run.scores, strict=True):
        assert (predictions.seed, predictions.fold) == (score.seed, score.fold)
        assert np.mean(predictions.scores.argmax(1) == predictions.labels) == pytest.approx(score.score)
        assert predictions.valid_scores.max() == score.valid_score
    assert sorted(np.concatenate([each.clips for each in found])) == list(range(400))


def test_a_share_of_the_training_clips_holds_every_class(tones):
    data, embedded = loaded(tones)
    whole = list(evaluation._problems(data, embedded, [42], 1.0))
    tenth = list(evaluation._problems(data, embedded, [42], 0.1))
    for all_of_them, few in zip(whole, tenth, strict=True):
        assert len(few.train) == pytest.approx(len(all_of_them.train) / 10, abs=1)
        assert set(few.train.tolist()) < set(all_of_them.train.tolist())
        assert len(set(data.labels[few.train].tolist())) == 10
        assert torch.equal(few.valid, all_of_them.valid)
    with pytest.raises(UsageError, match="train_fraction is 0"):
        linear(small_encoder(), "esc10", train_fraction=0)


@pytest.mark.slow
def test_the_command_that_repeats_a_run_is_kept(tones, tmp_path):
    (run,) = linear("random:m2d_vit_tiny-80x208p16x16", "esc10", data=str(tones), runs=tmp_path, seeds=1, epochs=3)
    assert run.command == (
        "m2d-bench linear --model random:m2d_vit_tiny-80x208p16x16 --tasks esc10 "
        f"--data {tones} --runs {tmp_path} --epochs 3 --seeds 1"
    )
