"""Figures show what the records say: drawn means, ends of bars, matrices and lines are those of the statistics."""

import csv
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from m2d_bench import runs
from m2d_bench.errors import DataError, UsageError
from m2d_bench.results.filter import Filter
from m2d_bench.results.folders import read_all
from m2d_bench.results.plots import clips, curves, figures, scores, verbs
from m2d_bench.results.plots.plot_data import labels, number
from m2d_bench.results.statistics import estimate, seed_means
from m2d_bench.runs import Predictions, Score
from tests.test_runs import RUN

LONG = "random:m2d_vit_base-80x608p16x16"
MAGIC = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF"}


def record(model="m2d_tiny", task="esc50", *, seeds=3, level=0.5, metric="accuracy", synthetic=False, **settings):
    scores = [
        Score(seed=seed, fold=fold, score=level + 0.01 * seed**2 + 0.03 * int(fold), n_test=9)
        for seed in range(seeds)
        for fold in "12"
    ]
    return replace(
        RUN,
        encoder={
            "name": model,
            "digest": (model.encode().hex() * 16)[-16:],
            "config": {"vit": {"patch_size": [16, 4]}},
        },
        task={**RUN.task, "name": task, "metric": metric, "synthetic": synthetic},
        settings={"epochs": 200, "train_fraction": 1.0, **settings},
        scores=tuple(scores),
    )


def predictions(seed, fold, *, epochs=5, shift=0.0):
    return Predictions(
        seed=seed,
        fold=fold,
        clips=np.arange(4),
        labels=np.array([0, 1, 2, 0]),
        scores=np.array([[3, 1, 2], [0, 2, 1], [2, 1, 0], [9, 0, 1]], dtype=np.float16),
        valid_scores=shift + 0.1 * np.arange(1, epochs + 1) + 0.02 * seed + 0.01 * int(fold),
        classes=np.array(["bark", "rain", "horn"]),
    )


def percent(run):
    return estimate([100 * score for score in seed_means(run).values()])


def bars(panel):
    """Of each point with an error bar its place and ends along x."""
    return [each for each in panel.containers if isinstance(each, ErrorbarContainer)]


def names(ticks):
    return [text.get_text() for text in ticks]


def test_forest_bars_end_where_the_interval_ends_and_the_best_is_on_top():
    weak, strong = record(LONG, level=0.2), record("m2d_tiny", level=0.6, seeds=6)
    (panel,) = scores.forest([weak, strong]).axes
    assert names(panel.get_yticklabels()) == ["m2d_tiny  n = 6", f"{LONG}  n = 3"]
    for place, (bar, run) in enumerate(zip(bars(panel), (strong, weak), strict=True)):
        found = percent(run)
        (segment,) = bar.lines[2][0].get_segments()
        assert segment[:, 0] == pytest.approx([found.mean - found.half_width, found.mean + found.half_width])
        assert segment[:, 1].tolist() == [place, place]
        assert bar.lines[0].get_xdata() == pytest.approx([found.mean])
    assert panel.get_ylim()[0] > panel.get_ylim()[1]
    assert panel.get_xlabel() == "accuracy (%)"


def test_forest_shows_each_seed_and_no_interval_for_one():
    (panel,) = scores.forest([record(seeds=1, level=0.2), record("other", seeds=4)]).axes
    dots = [each for each in panel.collections if isinstance(each, PathCollection)]
    assert [len(each.get_offsets()) for each in dots] == [4, 1]
    assert dots[0].get_offsets()[:, 0].tolist() == pytest.approx(
        [100 * s for s in seed_means(record("other", seeds=4)).values()]
    )
    assert [bar.has_xerr for bar in bars(panel)] == [True, False]


def test_forest_ranks_errors_upwards_and_says_so():
    worse, better = record("worse", "asv", level=0.3, metric="eer"), record("better", "asv", level=0.1, metric="eer")
    (panel,) = scores.forest([worse, better]).axes
    assert [name.split()[0] for name in names(panel.get_yticklabels())] == ["better", "worse"]
    assert panel.get_xlabel() == "eer (%), lower is better"


def test_decibels_are_not_percent():
    (panel,) = scores.forest([record(task="ss", metric="si_sdri", level=9.0)]).axes
    assert panel.get_xlabel() == "si_sdri (dB)"
    assert bars(panel)[0].lines[0].get_xdata()[0] == pytest.approx(percent(record(level=9.0)).mean / 100)


def test_a_model_has_one_colour_in_all_panels_and_synthetic_tasks_are_named_so():
    records = [record(m, t, synthetic=t == "events") for t in ("esc50", "events") for m in ("a", "b")]
    first, second = scores.forest(records).axes
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["esc50", "events (synthetic)"]
    colours = [[bar.lines[0].get_color() for bar in bars(panel)] for panel in (first, second)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 2


def test_more_models_than_colours_differ_in_their_markers():
    found = figures.styles(f"model {n}" for n in range(30))
    assert len(set(found.values())) == 30


def test_records_of_one_model_are_told_apart_by_what_differs():
    records = [record(epochs=epochs) for epochs in (100, 200)]
    assert labels(records) == ["m2d_tiny (epochs=100)", "m2d_tiny"]
    assert labels(records, "settings.epochs") == ["m2d_tiny", "m2d_tiny"]
    assert labels([record(), replace(record(), protocol="knn")]) == ["m2d_tiny (linear)", "m2d_tiny (knn)"]


def test_unfinished_records_are_named_and_left_out(caplog):
    unfinished = replace(record("other"), scores=record().scores[:1])
    (panel,) = scores.forest([record(), unfinished]).axes
    assert len(panel.get_yticklabels()) == 1
    assert "other on esc50: no seed is finished" in caplog.text
    with pytest.raises(UsageError, match="None of the 1 records has a finished seed"):
        scores.forest([unfinished])


def test_heatmap_cells_say_mean_and_half_width_and_missing_ones_a_dash():
    records = [record("a", "esc50"), record("a", "us8k", level=0.2), record("b", "esc50", level=0.7)]
    (panel,) = scores.heatmap(records).axes
    found = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in panel.texts}
    cells = [percent(run) for run in records]
    shown = [f"{each.mean:.1f} ± {each.half_width:.1f}" for each in cells]
    assert found == {(0, 0): shown[0], (0, 1): shown[1], (1, 0): shown[2], (1, 1): "–"}
    shade = panel.images[0].get_array()
    assert shade[:, 0].tolist() == [0, 1]
    assert shade.mask.tolist() == [[False, False], [False, True]]
    assert "n = 3 seeds" in panel.figure.get_suptitle()


def test_heatmap_counts_are_in_the_cells_where_they_differ_and_fewer_errors_are_darker():
    records = [record("a", "asv", metric="per", seeds=1), record("b", "asv", metric="per", level=0.2)]
    (panel,) = scores.heatmap(records).axes
    assert panel.texts[0].get_text() == f"{percent(records[0]).mean:.1f}\nn = 1"
    assert panel.texts[1].get_text().endswith("\nn = 3")
    assert panel.images[0].get_array()[:, 0].tolist() == [0, 1]
    assert "n = 1 to 3 seeds" in panel.figure.get_suptitle()


def test_radar_draws_models_that_have_all_tasks_and_names_the_others(caplog):
    tasks = ("a", "b", "c")
    records = [*(record("whole", task, level=0.1 * n) for n, task in enumerate(tasks, 1)), record("part", "a")]
    (panel,) = scores.radar(records).axes
    (line,) = panel.lines
    means = [percent(run).mean for run in records[:3]]
    assert line.get_ydata() == pytest.approx([*means, means[0]])
    assert line.get_label() == "whole"
    (band,) = (each for each in panel.collections if isinstance(each, PolyCollection))
    widths = [percent(run).half_width for run in records[:3]]
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(max(np.add(means, widths)))
    assert "part lacks b, c" in caplog.text


def test_radar_turns_errors_around_and_leaves_out_what_is_no_percentage(caplog):
    records = [record(task=task) for task in ("a", "b")] + [record(task="c", metric="eer")]
    (panel,) = scores.radar([*records, record(task="d", metric="si_sdri")]).axes
    assert panel.lines[0].get_ydata()[2] == pytest.approx(100 - percent(records[2]).mean)
    assert names(panel.get_xticklabels())[2] == "c\n100% − eer"
    assert "d (si_sdri)" in caplog.text


def test_radar_refuses_fewer_than_three_tasks_and_models_that_all_lack_one():
    with pytest.raises(UsageError, match="three tasks counted in percent or more, got a, b"):
        scores.radar([record(task="a"), record(task="b")])
    with pytest.raises(UsageError, match="No model has all 3 tasks: m lacks c; n lacks a, b"):
        scores.radar([record("m", "a"), record("m", "b"), record("n", "c")])


def test_curve_draws_a_line_a_model_with_the_interval_at_each_value(caplog):
    shares = (0.01, 0.1, 1.0)
    tiny = [record(train_fraction=share, level=0.1 + share / 10) for share in shares]
    other = replace(record("without"), settings={"epochs": 1})
    (panel,) = curves.curve([*tiny, record("b", train_fraction=1.0), other], "settings.train_fraction").axes
    found = {bar.get_label(): bar for bar in bars(panel)}
    assert set(found) == {"m2d_tiny", "b"}
    line, _, (ends,) = found["m2d_tiny"].lines
    assert line.get_xdata().tolist() == list(shares)
    assert line.get_ydata() == pytest.approx([percent(run).mean for run in tiny])
    assert isinstance(ends, LineCollection)
    for segment, run in zip(ends.get_segments(), tiny, strict=True):
        each = percent(run)
        assert segment[:, 1] == pytest.approx([each.mean - each.half_width, each.mean + each.half_width])
    assert panel.get_xscale() == "log"
    assert "left out: without on esc50" in caplog.text


WIDE = {"level": 0.9, "seeds": 2, "metric": "accuracy"}
"""An interval that reaches beyond 100%."""


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, lambda low, high: low < 90 and high == 100),
        ({"level": 0.0}, lambda low, high: low == 0 and high < 20),
        ({"level": 1.7, "metric": "wer"}, lambda low, high: low < 170 < high),
        ({"level": -9.0, "metric": "si_sdri"}, lambda low, high: low < -9),
    ],
)
def test_axes_of_shares_end_where_shares_do(changes, ends):
    wide = {**WIDE, **changes}
    several = [record(**wide, train_fraction=fraction) for fraction in (0.1, 1.0)]
    (forest,) = scores.forest([record(**wide)]).axes
    (curve,) = curves.curve(several, "settings.train_fraction").axes
    for low, high in (forest.get_xlim(), curve.get_ylim()):
        assert ends(low, high)


def test_masking_ratios_and_epochs_are_read_from_names_and_paths():
    name = "m2d_vit_base-80x608p16x16-221006-mr7"
    assert number(record(name), "mask_ratio") == 0.7
    assert number(record("m2d_vit_base-80x608p16x16-221006-mr75_enconly"), "mask_ratio") == 0.75
    assert number(record(name), "epoch") is None
    assert number(record("m2d_vit_base-80x608p16x16-e300"), "epoch") == 300
    assert number(replace(record(name), command=f"m2d-bench linear --model w/{name}/checkpoint-40.pth"), "epoch") == 40
    assert number(replace(record(name), encoder={"name": "m", "weights": "w/checkpoint-7.pth"}), "epoch") == 7
    assert number(record(), "encoder.config.vit.patch_size.1") == 4
    for field in ("settings.none", "settings", "encoder.name", "encoder.config.vit.patch_size.7", "nothing"):
        assert number(record(), field) is None


def test_models_that_differ_in_the_field_alone_share_a_line():
    stem = "m2d_vit_base-80x608p16x16-221006"
    (panel,) = curves.curve([record(f"{stem}-mr7"), record(f"{stem}-mr6")], "mask_ratio").axes
    (bar,) = bars(panel)
    assert bar.get_label() == stem
    assert bar.lines[0].get_xdata().tolist() == [0.6, 0.7]
    epochs = [
        replace(
            record(stem), encoder={"name": stem, "digest": f"{epoch:016}"}, command=f"--model w/checkpoint-{epoch}.pth"
        )
        for epoch in (100, 300)
    ]
    assert [bar.get_label() for bar in bars(curves.curve(epochs, "epoch").axes[0])] == [stem]


def test_curve_refuses_one_value_and_two_records_at_a_value():
    with pytest.raises(UsageError, match=r"two values of it or more, got 1 in 1 records.*settings.train_fraction"):
        curves.curve([record()], "settings.train_fraction")
    with pytest.raises(UsageError, match="got none in 1 records"):
        curves.curve([record()], "settings.colour")
    twice = [replace(record("m-mr7"), encoder={"name": "m-mr7", "digest": digest * 16}) for digest in "ab"]
    with pytest.raises(UsageError, match=r"Two records of m on esc50 have mask_ratio = 0\.7"):
        curves.curve([*twice, record("m-mr6")], "mask_ratio")


def test_learning_curves_are_means_over_seeds_of_means_over_folds():
    kept = [predictions(seed, fold, epochs=5 + seed + int(fold)) for seed in (0, 1) for fold in "12"]
    (panel,) = curves.learning([(record(), kept)]).axes
    *seeds, mean = panel.lines
    assert [len(line.get_xdata()) for line in seeds] == [6, 7]  # as long as the shorter fold
    expected = [100 * (0.1 * np.arange(1, 8) + 0.02 * seed + 0.015) for seed in (0, 1)]
    assert seeds[1].get_ydata() == pytest.approx(expected[1])
    assert mean.get_ydata()[:6] == pytest.approx((expected[0] + expected[1])[:6] / 2)
    assert mean.get_ydata()[6] == pytest.approx(expected[1][6])
    (band,) = (each for each in panel.collections if isinstance(each, PolyCollection))
    corners = band.get_paths()[0].vertices
    first = estimate([curve[0] for curve in expected])
    assert corners[corners[:, 0] == 1, 1].max() == pytest.approx(first.mean + first.half_width)
    assert corners[:, 0].max() == 6
    assert panel.get_ylabel() == "validation accuracy (%)"


def test_learning_curves_need_kept_predictions_of_epochs():
    tried = replace(record(), scores=tuple(replace(score, chosen={"k": 5}) for score in record().scores))
    for run, kept in ((record(), []), (record(), [predictions(0, "1")]), (tried, [predictions(0, f) for f in "12"])):
        with pytest.raises(UsageError, match=r"m2d-bench linear … --keep-predictions"):
            curves.learning([(run, kept)])


def test_confusion_sums_seeds_and_folds_and_shows_shares_of_the_true_class():
    figure = clips.confusion(record(), [predictions(seed, fold) for seed in (0, 1) for fold in "12"])
    panel = figure.axes[0]
    assert panel.images[0].get_array().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    found = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in panel.texts}
    assert found == {(0, 0): "8", (1, 1): "4", (2, 0): "4"}
    assert names(panel.get_yticklabels()) == ["bark", "rain", "horn"]
    assert "16 predictions" in figure.get_suptitle()


def test_confusion_refuses_several_labels_a_clip_and_records_without_predictions():
    with pytest.raises(UsageError, match="esc50: a clip may have several labels"):
        clips.confusion(record(), [replace(predictions(0, "1"), labels=np.eye(4, 3))])
    with pytest.raises(UsageError, match="--keep-predictions"):
        clips.confusion(record(), [])


def test_map_by_principal_components_keeps_distances_and_says_the_variance():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * (3, 1)
    turned = plane @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:2]
    (panel,) = clips.embedding_map(turned, ["a"] * 30 + ["b"] * 10).axes
    first, second = panel.collections
    assert [first.get_label(), second.get_label()] == ["a", "b"]
    points = np.concatenate([first.get_offsets(), second.get_offsets()])
    assert np.linalg.norm(points[3] - points[35]) == pytest.approx(np.linalg.norm(plane[3] - plane[35]))
    shares = [float(re.search(r"([\d.]+)% of", title)[1]) for title in (panel.get_xlabel(), panel.get_ylabel())]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def test_neighbours_stay_together_in_a_t_sne_map_that_is_the_same_each_time():
    embeddings = np.random.default_rng(0).normal(size=(24, 16)) + np.repeat(np.eye(2, 16) * 50, 12, 0)
    drawn = [clips.embedding_map(embeddings, ["a"] * 12 + ["b"] * 12, "tsne").axes[0] for _ in range(2)]
    first, second = (np.asarray(each.get_offsets()) for each in drawn[0].collections)
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > max(first.std(0).max(), second.std(0).max())
    assert np.array_equal(first, drawn[1].collections[0].get_offsets())


def test_rare_labels_are_grey():
    names = [f"label {n:02}" for n in range(25) for _ in range(2 if n < 20 else 1)]
    (panel,) = clips.embedding_map(np.random.default_rng(0).normal(size=(45, 4)), names).axes
    assert len(panel.collections) == 21
    assert panel.collections[0].get_label() == "(5 other labels)"
    assert to_hex(panel.collections[0].get_facecolor()[0]) == "#b2b2b2"


def test_maps_refuse_other_methods_and_too_few_embeddings():
    with pytest.raises(UsageError, match="Did you mean tsne"):
        clips.embedding_map(np.zeros((5, 3)), ["a"] * 5, "t-sne")
    with pytest.raises(UsageError, match=r"got the shape \(2, 3\)"):
        clips.embedding_map(np.zeros((2, 3)), ["a"] * 2)


def test_labels_are_found_by_path_then_by_name_else_the_folder_s(tmp_path, caplog):
    files = ["x/dog/1.wav", "y/dog/1.wav", "cat/2.wav", "3.wav"]
    assert clips.labels_of(files) == ["dog", "dog", "cat", "(no label)"]
    table = tmp_path / "labels.csv"
    rows = [("file_name", "label"), ("x/dog/1.wav", "A"), ("z/1.wav", "B"), ("2.wav", "C")]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert clips.labels_of(files, table) == ["A", "(no label)", "C", "(no label)"]  # 1.wav alone is ambiguous
    assert "2 of 4 files have no label, such as y/dog/1.wav" in caplog.text
    with pytest.raises(UsageError, match=r"names none of the 1 files, such as 9\.wav"):
        clips.labels_of(["9.wav"], table)
    table.write_text("name,label\n1.wav,a\n")
    with pytest.raises(UsageError, match="columns file_name and label"):
        clips.labels_of(files, table)


def test_embeddings_are_read_from_both_formats_and_nothing_else(tmp_path):
    pytest.importorskip("pyarrow")
    embeddings = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(tmp_path / "e.npz", files=np.array(["a", "b", "c"]), embeddings=embeddings, digest=np.array("d"))
    table = pd.DataFrame({"file": ["a", "b", "c"], "embedding": list(embeddings), "digest": "d"})
    table.to_parquet(tmp_path / "e.parquet")
    for name in ("e.npz", "e.parquet"):
        files, found = clips.read_embeddings(tmp_path / name)
        assert files == ["a", "b", "c"]
        assert np.array_equal(found, embeddings)
    with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
        clips.read_embeddings(tmp_path / "e.csv")
    np.savez(tmp_path / "other.npz", scores=embeddings)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name in ("other.npz", "broken.npz", "none.npz"):
        with pytest.raises(DataError, match="not what m2d-bench embed writes"):
            clips.read_embeddings(tmp_path / name)


@pytest.mark.parametrize("suffix", figures.SUFFIXES)
def test_each_format_is_written_and_is_the_same_twice(tmp_path, suffix):
    written = []
    for name in "ab":
        path = tmp_path / name / f"figure{suffix}"
        figures.save(scores.forest([record(), record("b")]), path)
        written.append(path.read_bytes())
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert written[0].startswith(MAGIC[suffix])
    assert written[0] == written[1]


def test_other_formats_and_a_missing_matplotlib_are_refused_before_any_work(tmp_path, monkeypatch):
    for name, got in (("f.jpg", r"\.jpg"), ("f", "no suffix")):
        with pytest.raises(UsageError, match=rf"\.png, \.svg, \.pdf; got '{got}'"):
            verbs.curve((tmp_path / "nowhere",), x="epoch", output=tmp_path / name)
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[plots\]'"):
        verbs.curve((tmp_path / "nowhere",), x="epoch", output=tmp_path / "f.png")


DOLLARS = "a$x^{$"
OF_DOLLARS = [record(DOLLARS, task, train_fraction=share) for task in ("a", "b", "c") for share in (0.5, 1.0)]
CLASSES = [replace(predictions(0, fold), classes=np.array([DOLLARS, "b", "c"])) for fold in "12"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: scores.forest(OF_DOLLARS[::2]),
        lambda: scores.heatmap(OF_DOLLARS[::2]),
        lambda: scores.radar(OF_DOLLARS[::2]),
        lambda: scores.forest([record(task=DOLLARS)]),
        lambda: curves.curve(OF_DOLLARS, "settings.train_fraction"),
        lambda: curves.learning([(record(DOLLARS), CLASSES)]),
        lambda: clips.confusion(record(), CLASSES),
        lambda: clips.embedding_map(np.eye(3), [DOLLARS, "b", "c"]),
    ],
)
def test_names_with_dollar_signs_are_no_formulas(tmp_path, draw):
    figures.save(draw(), tmp_path / "figure.svg")
    assert DOLLARS in (tmp_path / "figure.svg").read_text()  # as it is, in what matplotlib notes of each text


def test_drawing_leaves_matplotlib_s_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    scores.forest([record()])
    assert dict(matplotlib.rcParams) == before


def test_records_are_read_filtered_and_counted_once(tmp_path, caplog):
    for folder in ("one", "two"):
        for run in (record(LONG), record("m2d_tiny", "us8k")):
            runs.add(run, tmp_path / folder)
    (tmp_path / "one" / "broken.json").write_text("{")
    found, failures = read_all([tmp_path / "one", tmp_path / "two"])
    assert len(found) == 2
    assert len(failures) == 1
    assert caplog.text.count("the same record as ") == 2
    for wanted in (Filter(models=("random:*,x*",)), Filter(models=("nobody",)), Filter(protocol="knn")):
        with pytest.raises(UsageError, match=r"Unknown (model|protocol)"):
            read_all([tmp_path], wanted)
    with pytest.raises(UsageError, match="Did you mean us8k"):
        read_all([tmp_path], Filter(tasks=("us8",)))
    for wanted in (Filter(models=("random:*",)), Filter(tasks=("esc50",)), Filter(models=(LONG,), protocol="linear")):
        kept, _ = read_all([tmp_path / "one"], wanted)
        assert [run.encoder["name"] for run in kept.values()] == [LONG]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run records"):
        read_all([tmp_path / "empty"])


@pytest.fixture
def folder(tmp_path):
    """Records of two models on three tasks, and two shares of the training clips, with predictions."""
    folder = tmp_path / "runs"
    shares = [record("m2d_tiny", "esc50", train_fraction=0.1)]
    for run in [*(record(model, task) for model in (LONG, "m2d_tiny") for task in ("esc50", "us8k", "gtzan")), *shares]:
        runs.add(run, folder)
        for seed, fold in ((0, "1"), (0, "2"), (1, "1"), (1, "2")):
            runs.save_predictions(run, folder, predictions(seed, fold))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "forest RUNS",
        "heatmap RUNS --tasks esc50,us8k",
        "radar RUNS --models random:*",
        "curve RUNS --x settings.train_fraction --models m2d_tiny --tasks esc50",
        "learning RUNS --protocol linear",
        "confusion RUNS --model random:* --task esc50",
        "embeddings EMBEDDINGS --method pca",
    ],
)
def test_every_verb_writes_its_figure_and_names_broken_files(tmp_path, folder, words):
    np.savez(tmp_path / "e.npz", files=np.array(["a/1", "b/2", "b/3"]), embeddings=np.eye(3))
    (folder / "broken.json").write_text("{")
    target = tmp_path / "figure.png"
    words = words.replace("RUNS", str(folder)).replace("EMBEDDINGS", str(tmp_path / "e.npz")).split()
    output = verbs.PLOT([*words, "-o", str(target)], exit_on_error=False, result_action="return_value")
    assert target.read_bytes().startswith(MAGIC[".png"])
    assert output.text == str(target)
    assert len(output.failures) == (words[0] != "embeddings")


def test_confusion_of_several_records_lists_them_and_takes_one_by_its_path(tmp_path, folder):
    with pytest.raises(UsageError, match=r"is of one record; 2 fit(.|\n)*train_fraction=0\.1") as caught:
        verbs.confusion((folder,), output=tmp_path / "c.png", model="m2d_tiny", task="esc50")
    path = re.search(r"\S+\.json", str(caught.value))[0]
    assert verbs.confusion((tmp_path / path,), output=tmp_path / "c.png").failures == ()
    assert (tmp_path / "c.png").exists()
