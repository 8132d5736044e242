"""`m2d-bench VERB`: the verbs by name, imported when they are used, and what becomes of their output and errors."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from cyclopts import App, CycloptsError, CycloptsPanel, ValidationError
from rich.console import Console

from m2d_bench import __version__
from m2d_bench.errors import OtherProcessError, UsageError, describe
from m2d_bench.registry import resolve, unknown
from m2d_bench.settings import naming
from m2d_bench.terminal import close_streams, open_streams, say

VERBS = {
    "linear": ("m2d_bench.verbs:linear", "Evaluate an encoder: a linear probe, kNN or logistic regression per task."),
    "embed": ("m2d_bench.verbs:embed", "Write the embeddings of sound files into a .npz or .parquet file."),
    "finetune": ("m2d_bench.finetuning.verbs:finetune", "Fine-tune an encoder on tasks, by the papers' recipes."),
    "predict": ("m2d_bench.verbs:predict", "Tell the classes of sound files with a fine-tuned model."),
    "models": ("m2d_bench.verbs:MODELS", "List the models, or show what one holds."),
    "check": ("m2d_bench.hear_api.check:check", "Check that a model can be evaluated, one line a rule."),
    "superb": ("m2d_bench.superb_upstream.verbs:SUPERB", "Run SUPERB tasks with s3prl's own runner."),
    "evar": ("m2d_bench.evar_adapters.verbs:EVAR", "Run EVAR's scripts with our encoders; exchange files with it."),
    "xares": ("m2d_bench.xares_adapter.verbs:xares", "Run X-ARES tasks with its own runner."),
    "mteb": ("m2d_bench.mteb_adapter.verbs:MTEB", "Run MTEB and MAEB tasks with mteb's own evaluation."),
    "prepare": ("m2d_bench.pretrain.verbs:prepare", "Turn sound files into log-mel shards for pre-training."),
    "pretrain": ("m2d_bench.pretrain.verbs:pretrain", "Pre-train an encoder: MSM-MAE, M2D or M2D-X."),
    "table": ("m2d_bench.results.verbs:table", "Compare runs, beside the papers' numbers."),
    "plot": ("m2d_bench.results.plots.verbs:PLOT", "Plot runs: forest, radar, heat map, curves, confusion, maps."),
    "report": (
        "m2d_bench.results.html_report.page:report",
        "Write an HTML file with every run: table, plots, raw scores.",
    ),
    "runs": ("m2d_bench.results.verbs:RUNS", "List, show, export, merge and clear run records."),
    "tasks": ("m2d_bench.tasks.verbs:TASKS", "List, download, check or copy the data of tasks."),
    "cache": ("m2d_bench.cache.verbs:CACHE", "Show what lies in the cache, or clear it."),
}

KEPT = {
    **dict.fromkeys(
        ("linear", "mteb", "prepare", "tasks", "xares"),
        "What was finished is kept; the same command goes on from there.",
    ),
    **dict.fromkeys(("finetune", "pretrain"), "What was finished is kept; the same command with --resume goes on."),
}
"""What an interruption leaves, of the verbs that keep it."""

VERBOSE = "--verbose"

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

LEAST_COLUMNS = 80

SPIN_COUNT = 1000
"""Turns an OpenMP thread spins before it sleeps; docs/performance.md, "Several processes on one machine", says why."""


def build() -> App:
    """The command line; rooms are reached by name, so that --help imports none of them."""
    app = App(
        name="m2d-bench",
        help="Evaluate audio encoders of the Masked Modeling Duo family.\n\n"
        f"{VERBOSE} after any command shows where an error comes from.",
        version=__version__,
        error_formatter=_panel,
        console=_console(sys.stdout),
        error_console=_console(sys.stderr),
    )
    app.suppress_keyboard_interrupt = False  # main says what an interruption leaves
    for name, (reference, summary) in VERBS.items():
        app.command(reference, name=name, help=summary)
    return app


def _console(stream: TextIO) -> Console:
    """A console at least as wide as cyclopts's help needs: on narrower ones it never ends."""
    return Console(file=stream, width=max(LEAST_COLUMNS, shutil.get_terminal_size().columns))


def _panel(error: CycloptsError) -> Any:
    """The error in cyclopts's panel; of a value that pydantic refused, pydantic's reason without its report."""
    if isinstance(error, ValidationError) and error.__cause__ is not None:
        error.exception_message = resolve("m2d_bench.values:explain")(error.__cause__)
    return CycloptsPanel(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb: its table on stdout, everything else on stderr.

    Returns:
        0 done, 1 something failed (the rest was done, the failures are named last), 2 bad usage, 130 interrupted.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # read by OpenMP when torch is imported, after this
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    open_streams()
    given = sys.argv[1:] if arguments is None else arguments
    words, verbose = [word for word in given if word != VERBOSE], VERBOSE in given
    logging.getLogger("m2d_bench").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    try:
        code = _run(words)
    except CycloptsError:
        code = BAD_USAGE
    except KeyboardInterrupt:
        say(" ".join(["Interrupted.", *(KEPT[word] for word in words[:1] if word in KEPT)]))
        code = INTERRUPTED
    except Exception as error:  # the last to see it
        if verbose:
            say("".join(traceback.format_exception(error)))
        if not isinstance(error, OtherProcessError):
            say(f"ERROR: {describe(error)}")
        code = BAD_USAGE if isinstance(error, UsageError) else FAILED
    return code if close_streams() else code or FAILED


def _run(words: Sequence[str]) -> int:
    """Runs one verb and prints what it returns; the exit code."""
    if words and words[0] not in VERBS and not words[0].startswith("-"):  # cyclopts would import every verb
        raise unknown("command", words[0], list(VERBS), "m2d-bench --help")
    output = build()(words, exit_on_error=False, print_error=True, result_action="return_value")
    if output is None:  # --help and --version
        return DONE
    if isinstance(output, int):  # another tool's exit code
        return output
    if output.text:
        with suppress(BrokenPipeError), naming(Path("stdout")):  # broken by head, or a pager that was left
            say(output.text, sys.stdout)
    for failure in output.failures:
        say(f"ERROR: {failure}")
    return FAILED if output.failures else DONE


if __name__ == "__main__":
    sys.exit(main())
