"""The log of a run survives kills, holds every step once, and is written by one process; throughput by a fake clock."""

import json
import os
import signal
import subprocess
import sys
import types
from datetime import timedelta

import numpy as np
import pytest
import torch

from m2d_bench.errors import RunError, UsageError
from m2d_bench.training import log
from m2d_bench.training.log import METRICS, Log, ThroughputMeter, read


def plain(folder, **arguments):
    return Log(folder, tensorboard=False, **arguments)


def drawn(folder):
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    figure.savefig(folder / "map.png")
    return folder / "map.png"


def test_records_are_read_back_as_they_were_logged(tmp_path):
    with plain(tmp_path) as run:
        run.scalars(1, {"loss": torch.tensor(0.5), "lr": 1e-4})
        run.scalars(1, {"effective_rank": 7})
        run.scalars(2, {"loss": 0.25})
    assert read(tmp_path / METRICS) == [
        {"step": 1, "loss": 0.5, "lr": 1e-4},
        {"step": 1, "effective_rank": 7.0},
        {"step": 2, "loss": 0.25},
    ]


def test_values_that_json_does_not_have_are_null(tmp_path):
    with plain(tmp_path) as run:
        run.scalars(3, {"loss": float("nan"), "norm": float("inf"), "lr": 1.0})
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 3, "loss": None, "norm": None, "lr": 1.0}


def test_a_killed_process_loses_no_record(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from m2d_bench.training.log import Log\n"
        "run = Log(Path(sys.argv[1]), tensorboard=False)\n"
        "for step in range(100): run.scalars(step, {'loss': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in read(tmp_path / METRICS)] == list(range(100))


@pytest.mark.parametrize("torn", [b'{"step": 5, "lo', b'{"step": 5}', b"\0\0\0", b""])
def test_a_resumed_run_has_every_step_once_and_no_torn_line(tmp_path, torn):
    with plain(tmp_path) as run:
        for step in (1, 2, 2, 3, 4):
            run.scalars(step, {"loss": step})
    with (tmp_path / METRICS).open("ab") as file:
        file.write(torn)
    with plain(tmp_path, resumed_at=2) as run:
        run.scalars(3, {"loss": 30})
    assert [(each["step"], each["loss"]) for each in read(tmp_path / METRICS)] == [(1, 1), (2, 2), (2, 2), (3, 30)]


def test_a_new_run_starts_with_an_empty_log_and_a_resumed_one_may_have_none(tmp_path):
    for resumed_at in (None, None, 7):
        with plain(tmp_path, resumed_at=resumed_at) as run:
            run.scalars(8, {"loss": 1})
        assert len(read(tmp_path / METRICS)) == 1
    with plain(tmp_path / "other", resumed_at=7):
        assert read(tmp_path / "other" / METRICS) == []


@pytest.mark.parametrize("broken", ["no json", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_line_that_is_no_record_is_named_and_nothing_is_lost(tmp_path, broken):
    path = tmp_path / METRICS
    path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 2}}\n')
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: .* is not a record"):
        plain(tmp_path, resumed_at=2)
    assert path.read_bytes() == before


def test_other_ranks_write_nothing_and_read_no_tensor(tmp_path):
    with Log(tmp_path, rank=1, tensorboard=True, wandb="project") as run:
        run.scalars(1, {"loss": pytest.fail})
        run.picture(1, "picture", None)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_an_error_only_where_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with Log(tmp_path) as run:
        run.scalars(1, {"loss": 1})
    assert not (tmp_path / "tensorboard").exists()
    for package, asked in (("tensorboardX", {"tensorboard": True}), ("wandb", {"wandb": "project"})):
        with pytest.raises(UsageError, match=rf"{package} was asked for.*pip install {package}"):
            Log(tmp_path, **asked)
    assert len(read(tmp_path / METRICS)) == 1


def test_tensorboard_shows_scalars_and_pictures_and_each_step_once_after_resuming(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path) as run:
        for step in (1, 2, 3):
            run.scalars(step, {"loss": step})
        run.picture(3, "map", drawn(tmp_path))
    with Log(tmp_path, resumed_at=2) as run:
        run.scalars(3, {"loss": 30})
        run.picture(3, "map", drawn(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 30)]
    assert [event.step for event in events.Images("map")] == [3]


class FakeRun:
    def __init__(self, calls):
        self.calls = calls

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


def test_wandb_goes_on_with_the_same_run_when_resumed_and_with_another_when_new(tmp_path, monkeypatch):
    calls, started = [], []

    def init(**arguments):
        started.append(arguments)
        return FakeRun(calls)

    fake = types.SimpleNamespace(init=init, Image=lambda path: path, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resumed_at in (None, 1, None):
        with plain(tmp_path, resumed_at=resumed_at, wandb="audio", config={"lr": 1}) as run:
            run.scalars(2, {"loss": torch.tensor(0.5)})
            run.picture(2, "map", drawn(tmp_path))
    picture = str(tmp_path / "map.png")
    assert calls == 3 * [(2, {"loss": 0.5}), (2, {"map": picture}), "finish"]
    first, resumed, new = (each["id"] for each in started)
    assert first == resumed != new
    assert {(each["project"], each["resume"], each["config"]["lr"]) for each in started} == {("audio", "allow", 1)}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run_for(meter, clock, steps, seconds, clips=64):
    for _ in range(steps):
        clock.now += seconds
        meter.update(clips)


def test_a_steady_throughput_is_exact_from_the_first_step_on():
    clock = Clock()
    meter = ThroughputMeter(total=6400, flops_per_clip=10**9, peak=1e12, clock=clock)
    for step in range(1, 100):
        run_for(meter, clock, 1, 0.5)
        measured = meter.measure()
        assert measured == pytest.approx({"clips_per_second": 128, "flops_per_second": 128e9, "utilisation": 0.128})
        left = timedelta(seconds=round((6400 - 64 * step) / 128))
        assert meter.describe(measured).endswith(f" · {left} left")


def test_a_change_of_speed_shows_in_the_next_record():
    clock = Clock()
    meter = ThroughputMeter(total=10**9, clock=clock)
    run_for(meter, clock, 1000, 0.1, clips=10)
    assert meter.measure() == pytest.approx({"clips_per_second": 100})
    run_for(meter, clock, 300, 0.1, clips=20)
    assert meter.measure() == pytest.approx({"clips_per_second": 200})


def test_one_slow_step_counts_by_its_time_and_not_by_its_number():
    clock = Clock()
    meter = ThroughputMeter(total=1000, clock=clock)
    run_for(meter, clock, 9, 1.0, clips=10)
    run_for(meter, clock, 1, 91.0, clips=10)
    assert meter.measure()["clips_per_second"] == pytest.approx(1, rel=1e-6)


def test_time_that_went_into_something_else_is_left_out():
    clock = Clock()
    meter = ThroughputMeter(total=1000, clock=clock)
    run_for(meter, clock, 5, 0.5)
    clock.now += 500
    meter.skip()
    run_for(meter, clock, 5, 0.5)
    assert meter.measure()["clips_per_second"] == pytest.approx(128)


def test_a_resumed_run_has_only_the_rest_before_it_and_never_less_than_nothing():
    clock = Clock()
    meter = ThroughputMeter(total=1000, done=900, clock=clock)
    run_for(meter, clock, 1, 1.0, clips=20)
    assert meter.describe(meter.measure()) == "20.0 clips/s · 0:00:04 left"
    run_for(meter, clock, 9, 1.0, clips=20)
    assert meter.describe(meter.measure()) == "20.0 clips/s · 0:00:00 left"


@pytest.mark.parametrize(
    ("flops_per_clip", "peak", "shown"),
    [
        (84 * 10**9, 989.4e12, "3500.0 clips/s · 294.0 TFLOP/s · 29.7% · 1:00:00 left"),
        (84 * 10**6, None, "3500.0 clips/s · 294.0 GFLOP/s · 1:00:00 left"),
    ],
)
def test_the_progress_line_says_throughput_utilisation_and_time_left(flops_per_clip, peak, shown):
    clock = Clock()
    meter = ThroughputMeter(total=3500 * 3601, flops_per_clip=flops_per_clip, peak=peak, clock=clock)
    run_for(meter, clock, 1, 1.0, clips=3500)
    measured = meter.measure()
    assert meter.describe(measured) == shown
    assert np.isclose(measured["flops_per_second"], 3500 * flops_per_clip)
