"""Mean and standard deviation of a task's training data, as s3prl feeds it to an upstream."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import UsageError
from m2d_bench.progress import track
from m2d_bench.registry import unknown
from m2d_bench.settings import Storage
from m2d_bench.superb_upstream import data
from m2d_bench.superb_upstream.launcher import config_of
from m2d_bench.superb_upstream.norm_stats import TASKS
from m2d_bench.superb_upstream.runner import in_threads, prepare
from m2d_bench.superb_upstream.upstream import SAMPLE_RATE, Statistics


def calcnorm(task: str, storage: Storage = Storage()) -> Statistics:
    """Measures a task in one pass: every training clip once and whole, weighed by its length.

    Args:
        task: A key of `norm_stats.TASKS`.
        storage: The data folder, and the cache for lists of clips.

    Returns:
        Statistics of the log-mel spectrograms, in float64.

    Raises:
        UsageError: Unknown task, or one whose clips s3prl mixes on the fly.
        DataError: The data folder or what it should hold is missing.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS, f"these: {', '.join(TASKS)}")
    if task == "ss":
        raise UsageError(
            "ss mixes no clips an upstream could be measured on alone; its published statistics are -k NAME,ss."
        )
    clips = _Waveforms(task, storage)
    front_end, statistics = LogMel(SAMPLE_RATE), Statistics()
    fork = "fork" in multiprocessing.get_all_start_methods()  # other workers would lack what was restored
    workers = min(8, os.cpu_count() or 1) if fork else 0
    loader = DataLoader(
        clips, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for waveform in track(loader, f"Measuring {task}", len(clips), "clips"):
        statistics.add(front_end(waveform[None]))
    return statistics


def write(statistics: Statistics, task: str, path: Path) -> None:
    """Writes statistics as a YAML file for s3prl's -g."""
    values = {"task": task, "mean": statistics.mean, "std": statistics.std, "clips": statistics.clips}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


class _Waveforms(Dataset[torch.Tensor]):
    """Training clips of a task, whole, as s3prl reads them: [samples] float32 each."""

    def __init__(self, task: str, storage: Storage) -> None:
        downstream = TASKS[task].downstream
        config = config_of(downstream, storage.data)
        data.check(downstream, config)
        module: Any = prepare(downstream, config, storage, data.fingerprint(downstream, config))
        with tempfile.TemporaryDirectory() as folder, in_threads():
            expert = module.DownstreamExpert(
                upstream_dim=1, upstream_rate=160, downstream_expert=config["downstream_expert"], expdir=folder
            )
        self.corpus = downstream == "ctc"
        self.dataset = expert.get_dataloader("train").dataset.clips if self.corpus else expert.train_dataset
        if hasattr(self.dataset, "max_timestep"):
            self.dataset.max_timestep = None  # no random crop

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.corpus:
            from m2d_bench.compat import load

            return load(self.dataset[index][0])[0].reshape(-1)
        random.seed(index)  # Speech Commands' silence is a random second of a background noise
        return torch.as_tensor(self.dataset[index][0])

    def __len__(self) -> int:
        return len(self.dataset)
