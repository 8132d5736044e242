"""The log of a run: metrics.jsonl always, TensorBoard and Weights & Biases where they are; throughput."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from m2d_bench.errors import RunError, UsageError
from m2d_bench.settings import naming, replacing
from m2d_bench.training.launch import failing_together

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from m2d_bench.progress import Advance
    from m2d_bench.training.loop import Step

METRICS = "metrics.jsonl"


class Log:
    """Writes scalars and pictures of a run into its folder, on rank 0 alone.

    `metrics.jsonl` gets a line a record, {"step": …, name: value, …}, handed to the system at once: killing the process
    loses none. Log what belongs to a step before its checkpoint is written; then a resumed run has everything once.

    Args:
        folder: Folder of the run.
        resumed_at: Step of the checkpoint that training goes on from: records of later steps are dropped, and a last
            line that was cut short. None for a new run, whose log starts empty.
        rank: Of this process; all but 0 write nothing.
        tensorboard: Whether to write events for TensorBoard, into `tensorboard/`; None: if it is installed.
        wandb: Project of Weights & Biases to log to; None for no logging there.
        config: The run's settings, for Weights & Biases.

    Raises:
        UsageError: A package was asked for that is not installed.
        RunError: The log that is to go on holds something else than records.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_at: int | None = None,
        rank: int = 0,
        tensorboard: bool | None = None,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._writers: list[_Writer] = []
        if rank:
            return
        if tensorboard is None:
            tensorboard = find_spec("tensorboardX") is not None
        for wanted, package in ((tensorboard, "tensorboardX"), (wandb, "wandb")):
            if wanted and find_spec(package) is None:
                raise UsageError(f"Logging to {package} was asked for, but it is not installed: pip install {package}")
        self._writers.append(_Metrics(folder, resumed_at))
        if tensorboard:
            self._writers.append(_TensorBoard(folder, resumed_at))
        if wandb:
            self._writers.append(_WeightsAndBiases(folder, resumed_at, wandb, config or {}))

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Logs values of a step; several records may have the same step.

        Reading a tensor waits for its device: call this every so many steps, not every step.
        """
        if self._writers:
            numbers = {name: float(value) for name, value in values.items()}
            for writer in self._writers:
                writer.scalars(step, numbers)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Logs a picture, a PNG file."""
        for writer in self._writers:
            writer.picture(step, name, path)

    def close(self) -> None:
        """Flushes and closes everything; nothing is logged after it."""
        while self._writers:
            self._writers.pop().close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in the order they were written, without a last line that was cut short.

    Raises:
        RunError: A line is not a record.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            start = line[:60].decode(errors="replace")
            raise RunError(
                f'{path}, line {number}: {start!r} is not a record {{"step": …}}. Mend the line, or move the file away.'
            ) from None
        records.append(record)
    return records


class _Writer(Protocol):
    """A place where the log goes."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class _Metrics:
    """A line of JSON a record; NaN and infinities, which JSON does not have, are null."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        path = folder / METRICS
        records = read(path) if resumed_at is not None and path.exists() else []
        with replacing(path) as file:
            for record in records:
                if resumed_at is not None and record["step"] <= resumed_at:
                    file.write(_line(record))
        self._path, self._file = path, path.open("ab")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self._path):
            self._file.write(_line({"step": step, **finite}))
            self._file.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class _TensorBoard:
    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        from tensorboardX import SummaryWriter  # torch's own loads TensorFlow where it is installed

        purge_step = None if resumed_at is None else resumed_at + 1
        suffix = f".{resumed_at or 0:09d}.{os.getpid()}"  # a name to the second alone might be taken
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step, filename_suffix=suffix)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """Goes on with the same run there; of steps it has already, it keeps the first values."""

    def __init__(self, folder: Path, resumed_at: int | None, project: str, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # optional

        self._wandb = wandb
        identity = folder / "wandb_id"
        if resumed_at is None or not identity.exists():
            with replacing(identity) as file:
                file.write(secrets.token_hex(4).encode())
        self._run = wandb.init(
            project=project, id=identity.read_text(), resume="allow", dir=str(folder), config=dict(config)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class ThroughputMeter:
    """Throughput of a training between two records of its log, and the time it has left.

    Args:
        total: Clips of the whole training, over all devices.
        done: Clips that a resumed run was trained on before.
        flops_per_clip: Model FLOPs of a clip; 0 if they are not counted.
        peak: FLOP/s of all devices together, None if unknown.
        clock: Seconds from any start.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int = 0,
        flops_per_clip: int = 0,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from lightning_fabric.utilities.throughput import Throughput  # an extra

        self._throughput = Throughput(available_flops=peak, window_size=2)
        self._throughput.update(time=0.0, batches=0, samples=0, flops=0)
        self._flops_per_clip, self._remaining = flops_per_clip, total - done
        self._clock, self._last = clock, clock()
        self._seconds, self._steps, self._clips, self._flops = 0.0, 0, 0, 0

    def update(self, clips: int) -> None:
        """Counts a step of so many clips, over all devices."""
        now = self._clock()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._steps += 1
        self._clips += clips
        self._flops += clips * self._flops_per_clip

    def skip(self) -> None:
        """Leaves out the time since the last update: it went into something else than training."""
        self._last = self._clock()

    def measure(self) -> dict[str, float]:
        """Throughput since the last measurement.

        Returns:
            Values for the log: clips_per_second; flops_per_second where they are counted; and utilisation, their share
            of the peak, where that is known too.
        """
        self._throughput.update(time=self._seconds, batches=self._steps, samples=self._clips, flops=self._flops)
        self._flops = 0
        measured = self._throughput.compute()
        names = {"clips_per_second": "device/samples_per_sec"}
        if self._flops_per_clip:
            names |= {"flops_per_second": "device/flops_per_sec", "utilisation": "device/mfu"}
        return {name: measured[key] for name, key in names.items() if key in measured}

    def describe(self, measured: Mapping[str, float]) -> str:
        """A measurement for the progress line: 3512.0 clips/s · 295.0 TFLOP/s · 29.8% · 1:23:45 left."""
        parts = [f"{measured['clips_per_second']:.1f} clips/s"]
        if flops := measured.get("flops_per_second"):
            unit, prefix = (1e9, "G") if flops < 1e12 else (1e12, "T")
            parts.append(f"{flops / unit:.1f} {prefix}FLOP/s")
        if "utilisation" in measured:
            parts.append(f"{measured['utilisation']:.1%}")
        left = max(self._remaining - self._clips, 0) / measured["clips_per_second"]
        return " · ".join([*parts, f"{timedelta(seconds=round(left))} left"])


@dataclass(frozen=True, kw_only=True)
class StepReporter:
    """Logs every so many steps, and moves the progress bar on.

    Args:
        fabric: Launched.
        log: Where records go.
        meter: Throughput.
        advance: The progress bar.
        every: Steps between records.
        last: The last step, which is logged too.
        describe: The progress line of a step, without its throughput.
    """

    fabric: Fabric
    log: Log
    meter: ThroughputMeter
    advance: Advance
    every: int
    last: int
    describe: Callable[[Step], str]

    def __call__(self, step: Step) -> None:
        """Reports a step."""
        self.meter.update(step.clips)
        if step.number % self.every == 0 or step.number == self.last:
            measured = self.meter.measure()
            with failing_together(self.fabric):
                self.log.scalars(step.number, {"loss": step.loss, **step.scalars, **measured})
            self.advance.describe(f"{self.describe(step)} · {self.meter.describe(measured)}")
        self.advance(1)
