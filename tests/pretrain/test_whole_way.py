"""From sound files to scores, by the command line alone."""

import pytest

pytest.importorskip("lightning_fabric")

from m2d_bench import linear, tasks
from m2d_bench.cli import main
from m2d_bench.results.statistics import paired, seed_means
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset


@pytest.mark.slow
def test_from_sound_files_to_scores_better_than_those_of_random_weights(tmp_path, capsys):
    """The debug recipe on crops of 0.96 s, of generated instruments: prepare → pretrain → linear."""
    task = dataset.load(tasks.get("gm_family"), Storage())
    assert main(["prepare", str(task.root), str(tmp_path / "mels")]) == 0
    small = ["--set", "input_size=[80,96]", "epochs=20", "--workers", "1", "--save-epochs", "0", "--watch-epochs", "20"]
    places = ["--data", str(tmp_path / "mels"), "--out", str(tmp_path)]
    assert main(["pretrain", "--recipe", "debug", *places, *small]) == 0
    (path,) = tmp_path.rglob("checkpoint-*.pth")
    trained, random_weights = (
        linear(model, "gm_family", seeds=6, runs=tmp_path / "runs")[0]
        for model in (str(path), "random:m2d_vit_tiny-80x96p16x16")
    )
    found = paired(list(seed_means(trained).values()), list(seed_means(random_weights).values()))
    assert found.mean > 0.02
    assert found.p < 0.05
