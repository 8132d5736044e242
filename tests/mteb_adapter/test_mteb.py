"""mteb's own evaluation of encoders on miniatures of its tasks, without network."""

import importlib.util
import json
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soxr

from m2d_bench import audio, runs
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import wrap
from m2d_bench.errors import DataError, UsageError
from m2d_bench.mteb_adapter import MTEBEncoder, encoder, model_meta, records
from m2d_bench.mteb_adapter.evaluation import MTEBSettings, evaluate
from m2d_bench.results.statistics import estimate, seed_means
from m2d_bench.runs import TasksFailed
from tests.conftest import small_encoder
from tests.mteb_adapter.own_tasks import sound, tone, write

needs_mteb = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None, reason="mteb is not installed: pip install 'm2d-bench[mteb]'"
)


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """No network, and no cache of the user's."""

    def refuse(*_):
        raise OSError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        if importlib.util.find_spec("datasets"):
            patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """File of the tasks."""
    return write(tmp_path_factory.mktemp("tones"))


@pytest.fixture
def settings(tmp_path):
    return MTEBSettings(runs=tmp_path / "runs", cache=tmp_path / "cache", device="cpu", precision="fp32")


def result_of(run, settings):
    """mteb's result of a record's task."""
    (path,) = settings.cache_root.glob(f"mteb/*/results/*/{run.encoder['digest']}/{run.task['name']}.json")
    return json.loads(path.read_text())


def mean(run):
    return estimate(list(seed_means(run).values())).mean


@needs_mteb
def test_a_task_from_the_command_line_is_mtebs_evaluation_and_is_not_run_again(
    tasks, settings, small_model, monkeypatch, capsys
):
    words = ["mteb", "--model", str(small_model), "--tasks", f"{tasks}:Tones", "--runs", str(settings.runs)]
    words += ["--cache", str(settings.cache), "--precision", "fp32"]
    assert main(words) == 0
    assert "mteb accuracy" in capsys.readouterr().out
    (run,) = runs.read(settings.runs_root)[0].values()
    (scores,) = result_of(run, settings)["scores"]["test"]
    assert [score.score for score in run.scores] == [one["accuracy"] for one in scores["scores_per_experiment"]]
    assert mean(run) == pytest.approx(scores["main_score"], abs=1e-6)
    assert run.encoder["digest"] == small_encoder().digest
    assert (run.protocol, run.task["metric"], run.settings["mteb"]) == ("mteb", "accuracy", "2.26.24")
    assert run.task["fingerprint"].startswith("1-")

    monkeypatch.setattr(MTEBEncoder, "encode", None)
    assert main(words) == 0
    assert main(["table", "--runs", str(settings.runs)]) == 0
    assert "Tones" in capsys.readouterr().out
    assert runs.read(settings.runs_root)[0] == {run.path(settings.runs_root): run}


@needs_mteb
@pytest.mark.parametrize(
    ("name", "seeds", "folds"),
    [
        ("Folds", 1, ["train/1", "train/2", "train/3"]),
        ("Clusters", 3, ["test/Level 0", "train/Level 0"]),
        ("Pairs", 1, ["test"]),
        ("Search", 1, ["test"]),
    ],
)
def test_scores_of_every_kind_of_task_have_mtebs_mean(name, seeds, folds, tasks, settings):
    (run,) = evaluate("logmel", [f"{tasks}:{name}"], settings)
    splits = result_of(run, settings)["scores"].values()
    assert mean(run) == pytest.approx(np.mean([scores["main_score"] for (scores,) in splits]), abs=1e-6)
    assert sorted({score.fold for score in run.scores}) == folds
    assert len(run.scores) == seeds * len(folds)


@needs_mteb
def test_every_encoder_and_every_edition_of_a_task_has_a_score_of_its_own(tmp_path, settings):
    file = write(tmp_path / "own")
    models = ["logmel", small_encoder(), small_encoder((80, 2)), small_encoder()]  # three of one name
    models[-1].precision = "bf16"
    found = [evaluate(model, [f"{file}:Tones"], settings)[0] for model in models]
    file.write_text(file.read_text().replace("n_experiments = 3", "n_experiments = 2"))
    (edited,) = evaluate("logmel", [f"{file}:Tones"], settings)
    assert len({run.path(settings.runs_root) for run in [*found, edited]}) == 5
    assert [len(run.scores) for run in [*found, edited]] == [3, 3, 3, 3, 2]
    assert found[-1].settings["encoder_precision"] == "bf16"


@needs_mteb
@pytest.mark.parametrize("model", [small_encoder, lambda: zoo.load("logmel")])
def test_embeddings_are_those_of_the_encoder_alone_whatever_length_rate_channels_and_batch_mates(model, tmp_path):
    from datasets import Audio, Dataset

    rng = np.random.default_rng(0)
    waves = [
        (tone(1, seconds, rate, rng), rate)
        for seconds, rate in ((0.01, 16000), (0.023, 48000), (5.3, 16000), (1, 8000))
    ]
    waves.append((np.stack([waves[3][0], waves[2][0][:8000]], 1), 8000))
    sounds = [sound(wave, rate) for wave, rate in waves]
    own = wrap(model())
    expected = []
    for index, file in enumerate(sounds):
        path = tmp_path / f"{index}.wav"
        path.write_bytes(file["bytes"])
        expected.append(own.scene_embeddings(audio.read(path, own.sample_rate))[0].numpy())
    on_disk = {"bytes": None, "path": str(tmp_path / "0.wav")}
    dataset = Dataset.from_dict({"audio": [*sounds, on_disk]}).cast_column("audio", Audio())
    task = SimpleNamespace(name="task")
    given = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
    embeddings = MTEBEncoder(own).encode(SimpleNamespace(dataset=dataset), **given, batch_size=4)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, [*expected, expected[0]], rtol=1e-4, atol=1e-5)

    arrays = [{"array": wave.T.tolist(), "sampling_rate": rate} for wave, rate in waves[:4]]
    embeddings = MTEBEncoder(own).encode(SimpleNamespace(dataset=Dataset.from_dict({"audio": arrays})), **given)
    for embedding, (wave, rate) in zip(embeddings, waves, strict=False):
        by_hand = own.scene_embeddings(soxr.resample(wave.astype(np.float32), rate, own.sample_rate))[0]
        np.testing.assert_allclose(embedding, by_hand, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="task: its column audio is missing, there are text"):
        MTEBEncoder(own).encode(SimpleNamespace(dataset=Dataset.from_dict({"text": ["a"]})), **given)


@needs_mteb
@pytest.mark.parametrize("kept_as", ["sound", "mapping"])
def test_rows_without_a_sound_are_numbered_and_no_rows_have_no_embeddings(kept_as, tmp_path):
    from datasets import Audio, Dataset

    rows = [sound(np.zeros(800), 8000), None, {"bytes": None, "path": None}, {"bytes": b"x", "path": None}]
    rows.append({"bytes": None, "path": str(tmp_path / "none.wav")})
    dataset = Dataset.from_dict({"audio": rows})
    if kept_as == "sound":
        dataset = dataset.cast_column("audio", Audio())
    given = {"task_metadata": SimpleNamespace(name="task"), "hf_split": "test", "hf_subset": "default"}
    own = MTEBEncoder(small_encoder())
    with pytest.raises(DataError) as error:
        own.encode(SimpleNamespace(dataset=dataset), **given)
    first, *messages = sorted(str(error.value).splitlines()[1:])
    assert first.startswith("row 1: no sound, which has array and sampling_rate, or bytes or path; got ")
    starts = ["row 2: no sound", "row 3 (clip): cannot be decoded", f"row 4 ({tmp_path / 'none.wav'}): no such file."]
    assert [message.startswith(start) for message, start in zip(messages, starts, strict=True)] == [True] * 3
    embeddings = own.encode(SimpleNamespace(dataset=dataset.select([])), **given)
    assert (embeddings.shape, embeddings.dtype) == ((0, own.encoder.scene_embedding_size), np.float32)


@needs_mteb
def test_the_metadata_is_mtebs_and_loads_an_encoder_under_its_protocol(tasks, settings):
    import mteb

    meta = model_meta("random:m2d_vit_tiny-80x208p16x16", settings)
    own = zoo.load("random:m2d_vit_tiny-80x208p16x16", compute=settings)
    assert meta.name == "m2d-bench/random%3Am2d_vit_tiny-80x208p16x16"
    assert meta.revision == own.digest
    assert (meta.modalities, meta.embed_dim) == (["audio"], own.scene_embedding_size)
    assert meta.n_parameters == sum(weight.numel() for weight in own.parameters())
    assert meta.license is meta.open_weights is meta.experiment_kwargs is None
    loaded = meta.load_model(device="cpu")
    assert isinstance(loaded, mteb.EncoderProtocol)
    assert loaded.mteb_model_meta.revision == meta.revision
    assert float(loaded.similarity_pairwise(np.eye(2), np.eye(2))[0]) == pytest.approx(1)
    assert loaded.similarity(np.eye(2), np.eye(2)).tolist() == np.eye(2).tolist()
    bf16 = model_meta("logmel", settings)
    assert bf16.experiment_kwargs is None
    own.precision = "bf16"
    assert model_meta(own).experiment_kwargs == {"encoder_precision": "bf16"}


@needs_mteb
def test_results_made_elsewhere_are_imported(tasks, settings, tmp_path, capsys, caplog):
    import mteb

    from m2d_bench.mteb_adapter.tasks import get_all

    task = get_all([f"{tasks}:Tones"])[f"{tasks}:Tones"]
    mteb.evaluate(model_meta("logmel"), task.make(), cache=mteb.ResultCache(tmp_path / "mteb"), show_progress_bar=False)
    (tmp_path / "mteb" / "results" / "other.json").write_text("{}")
    words = ["mteb", "import", str(tmp_path / "mteb" / "results"), "--runs", str(settings.runs)]
    (path,) = tmp_path.glob("mteb/results/*/*/Tones.json")
    (path.parent / "cut.json").write_text('{"scores": {"test": []}}')
    assert main(words) == 1
    assert "cut.json: no result of mteb" in capsys.readouterr().err
    assert "results: left out JSON files without model_meta.json beside them: 1" in caplog.text
    (run,) = runs.read(settings.runs_root)[0].values()
    assert (run.encoder["name"], run.encoder["digest"]) == ("logmel", zoo.load("logmel").digest)
    assert mean(run) == pytest.approx(json.loads(path.read_text())["scores"]["test"][0]["main_score"], abs=1e-6)
    assert run.task["metric"] == "accuracy"  # though mteb does not know the task
    assert run.scores == records.read(path, task.make).scores
    assert len(run.scores) == 3
    with pytest.raises(DataError, match="no results of mteb"):
        records.results(settings.runs_root / "none")


@needs_mteb
@pytest.mark.parametrize("name", ["Folds", "Clusters", "Search"])
def test_importing_what_our_own_evaluation_left_changes_no_record(name, tasks, settings, capsys):
    model = small_encoder()
    model.config = replace(model.config, name="own:code.py/Full %")
    evaluate(model, [f"{tasks}:{name}"], settings)
    before = runs.read(settings.runs_root)[0]
    (run,) = before.values()
    words = ["mteb", "import", str(settings.cache_root), "--runs", str(settings.runs)]
    assert main(words) == 0
    assert runs.read(settings.runs_root)[0] == before
    assert main([*words[:-1], str(settings.runs_root / "other")]) == 0
    (other,) = runs.read(settings.runs_root / "other")[0].values()
    assert (other.encoder["name"], other.task["metric"]) == (run.encoder["name"], run.task["metric"])
    assert len(other.scores) == len(run.scores)


@needs_mteb
def test_a_task_that_fails_is_named_with_its_clip_and_the_others_are_done(tasks, tmp_path, settings):
    broken = write(tmp_path / "broken", broken=True)
    with pytest.raises(TasksFailed) as error:
        evaluate("logmel", [f"{broken}:Tones", f"{tasks}:Pairs"], settings)
    (message,) = error.value.messages
    assert "Tones, split test, subset default: 1 clips cannot be embedded:" in message
    assert "\nrow 4 (clip.flac): cannot be decoded" in message
    assert [run.task["name"] for run in error.value.runs] == ["Pairs"]


@needs_mteb
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ESC5", "Unknown audio task of mteb 'ESC5'. Did you mean ESC50"),
        ("MAEB", "Unknown audio task of mteb 'MAEB'. See m2d-bench mteb tasks, or give FILE.py:CLASS"),  # has texts
        ("{tasks}:Captions", "is of audio, text; encoders of m2d-bench take audio alone"),
        ("{tasks}:metadata", "is no task of mteb: it must be a class over one of mteb.abstasks"),
        ("{tasks}", "tasks.py: which task in it. Write .*tasks.py:CLASS"),
        ("{tasks}:Nope", "Unknown class 'Nope'.*tasks.py, which defines metadata, Tones, Folds, Clusters, Pairs, Sear"),
        ("", "Which tasks of mteb"),
    ],
)
def test_a_name_that_is_no_audio_task_says_what_is(name, message, tasks, settings):
    with pytest.raises(UsageError, match=message):
        evaluate("logmel", [name.format(tasks=tasks)] if name else [], settings)
    with pytest.raises(UsageError, match=message):
        evaluate("logmel", name.format(tasks=tasks), settings)


@needs_mteb
@pytest.mark.parametrize("several", [False, True])
def test_a_task_that_is_no_name_is_refused(several, tasks, settings):
    from m2d_bench.mteb_adapter.tasks import get_all

    for task in (made := get_all(f"{tasks}:Tones")[f"{tasks}:Tones"].make, made()):
        with pytest.raises(UsageError, match="Tasks of mteb are given by name, such as ESC50"):
            evaluate("logmel", [task] if several else task, settings)


@needs_mteb
def test_without_tasks_the_message_says_where_they_are_listed(capsys):
    assert main(["mteb", "--model", "logmel"]) == 2
    assert "Name them with --tasks; m2d-bench mteb tasks lists them" in " ".join(capsys.readouterr().err.split())


@needs_mteb
def test_tasks_whose_data_cannot_be_fetched_are_named_once_in_one_message(settings, monkeypatch):
    def unreachable(path, **_):
        raise ConnectionError(f"Couldn't reach {path!r} on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("mteb.abstasks.abstask.load_dataset", unreachable)
    with pytest.raises(TasksFailed) as error:
        evaluate("logmel", ["ESC50", "BeijingOpera"], settings)
    (message,) = error.value.messages
    assert message.startswith("ESC50, BeijingOpera failed: Its data set is not there yet, and the Hugging Face Hub")


@needs_mteb
def test_audio_tasks_and_benchmarks_are_listed(capsys):
    assert main(["mteb", "tasks"]) == 0
    listed = capsys.readouterr().out
    assert "ESC50" in listed
    assert "MAEB(audio-only)" in listed
    assert "AudioCaps" not in listed


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[mteb\]' with Python 3.11 or newer"):
        model_meta("logmel")
