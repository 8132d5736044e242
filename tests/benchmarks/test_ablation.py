"""The ablation of a recipe: what cannot be done is said at once, and a table of what can."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("lightning_fabric")

from m2d_bench import runs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablation.py"
SMALL = "size=tiny input_size=[80,48] effective_batch=8 predictor_width=32 predictor_depth=1 predictor_heads=2"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty clips of half a second, a hiss and a hum, in folders of two classes."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(40):
        noise = rng.standard_normal(8000)
        name, waveform = ("hum", noise.cumsum() / 500) if number % 2 else ("hiss", noise / 10)
        (folder / name).mkdir(exist_ok=True)
        soundfile.write(folder / name / f"{number}.wav", waveform, 16000)
    return folder


@pytest.fixture
def ablate(monkeypatch, capsys, clips, tmp_path):
    """What the script prints of the clips and a folder, with more words."""

    def run(*words, data=clips, folder=tmp_path):
        monkeypatch.setattr(sys, "argv", ["ablation.py", str(data), str(folder), *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(
    ("words", "places", "says"),
    [
        ([], {"data": "nowhere"}, "nowhere: no such file or folder"),
        (["--variants", "effective_batch=64"], {}, "36 clips an epoch are fewer than effective_batch=64"),
        (["--variants", "noise_ratio=0.2"], {}, "noise_ratio=0.2 mixes in noise, and there is none"),
        (["--recipe", "m2d_as_base"], {}, "there are none. Name --labels"),
        (["--variants", "base_rate"], {}, "--set base_rate: it takes NAME=VALUE"),
        (["--epochs", "0"], {}, "epochs is 0"),
        (["--seeds", "0"], {}, "seeds is 0"),
        (["--tasks", "events,evnets"], {}, "Unknown task 'evnets'. Did you mean events?"),
        (["--tasks", "esc50"], {}, "esc50: needs its data set"),
        ([], {"folder": SCRIPT}, "ablation.py: cannot be made (File exists)"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(ablate, capsys, monkeypatch, words, places, says):
    monkeypatch.setattr("m2d_bench.linear", None)
    with pytest.raises(SystemExit) as refusal:
        ablate("--variants", SMALL, *words, **places)
    assert says in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_a_table_compares_the_variants_with_log_mel_and_random_weights(ablate, clips, tmp_path):
    words = ["--variants", SMALL, "--tasks", f"{clips},", "--seeds", 1, "--epochs", 1]
    heading, rule, *rows = ablate(*words)
    assert heading == f"| variant | rank | loss | mean | {clips} |"
    assert rule == "|---|---:|---:|---:|---:|"
    names, ranks, losses, means, scores = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
    assert names == ("logmel", "random:m2d_vit_tiny-80x208p16x16", SMALL)
    assert ranks[:2] == losses[:2] == ("–", "–")
    assert float(ranks[2]) > 0
    assert means == scores
    assert float(scores[0]) > 90
    norms = [run.encoder["config"].get("norm_stats") for run in runs.read(tmp_path / "runs")[0].values()]
    trained, random = filter(None, norms)
    assert trained == pytest.approx(random)  # both of the clips
    assert ablate(*words) == [heading, rule, *rows]
