"""What is fine-tuned and where it runs."""

# No postponed annotations here: the command line reads the types of FinetuneSettings.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from m2d_bench.output import Names
from m2d_bench.settings import OnBadFile, Storage
from m2d_bench.training.launch import Precision

BestBy = Literal["auto", "valid", "test", "last"]
Kept = Literal["all", "best", "none"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Storage):
    """What is trained and where it runs.

    Args:
        seeds: Number of runs.
        first_seed: Seed of the first run; the others follow.
        folds: Folds to train; all by default.
        best_by: What chooses the epoch that is tested. auto: the validation clips, or where the task has none the test
            clips, the papers' convention. valid: where there are none, a tenth of the training clips, as in linear
            evaluation. test. last: the last epoch, whatever it scores.
        device: auto (a GPU if there is one), cpu, cuda, …; several under torchrun or Slurm.
        precision: fp32, bf16, fp16, or auto: bf16 where the device multiplies it natively, else fp32.
        compile: Compile the encoder.
        jobs: Threads that decode audio; 0 means one a core.
        memory: GiB of decoded audio to keep in memory.
        out: Folder for checkpoints.
        checkpoints: Which to keep of a finished training: all (the best and the last), best or none.
        resume: Go on where an unfinished training stopped.
        force: Train finished seeds and folds anew.
        keep_predictions: Also keep what each test clip scored, beside the record.
        clip_seconds: Seconds that clips are cut or padded to; by default each task's own.
        on_bad_file: Sound files that cannot be read make their task fail (stop), or are left out of it (skip), which
            the record tells.
        resume_minutes: Minutes between files to go on from.
        log_steps: Steps between records of the log.
    """

    seeds: PositiveInt = 3
    first_seed: int = 42
    folds: Annotated[tuple[str, ...], Names] = ()
    best_by: BestBy = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    compile: bool = False
    jobs: NonNegativeInt = 0
    memory: NonNegativeFloat = 2.0
    out: str | Path = "finetuned"
    checkpoints: Kept = "all"
    resume: bool = False
    force: bool = False
    keep_predictions: bool = False
    clip_seconds: PositiveFloat | None = None
    on_bad_file: OnBadFile = "stop"
    resume_minutes: NonNegativeFloat = 5.0
    log_steps: PositiveInt = 20
