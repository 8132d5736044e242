"""When seeds whose number was left open are enough: `m2d-bench linear --seeds until=WIDTH`.

The question is put after each of 3, 4, …, 30 seeds. Whoever tests that often at 5% finds a difference that is not there
in a quarter of all comparisons; hence one is decided where p < 0.05 after Bonferroni's correction for all looks. Widths
are Student's, as if the number of seeds had been fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from m2d_bench.evaluation.settings import LEAST_SEEDS, MOST_SEEDS
from m2d_bench.results.render import interval
from m2d_bench.results.statistics import UNITS, estimate, paired, scale, seed_means
from m2d_bench.runs import Run

logger = logging.getLogger(__name__)

LOOKS = MOST_SEEDS - LEAST_SEEDS + 1

_ROUNDING = 1e-6
"""Half width of differences that are the same with every seed, which no test can be made of."""


def enough(records: Sequence[Run], width: float, compared: bool) -> bool:
    """Whether the records of a task need no more seeds; says so where their width does not tell.

    Args:
        records: All of the same seeds.
        width: Half width of the 95% interval below which seeds are enough, in the unit shown.
        compared: Whether two records are compared, the second the baseline's: then the width is their difference's, and
            seeds are enough as well when the difference is decided.
    """
    metric = records[0].task["metric"]
    scores = [[scale(metric) * score for score in seed_means(run).values()] for run in records]
    n = len(scores[0])
    if n < LEAST_SEEDS:  # they repeat nothing
        return True
    where, unit = f"{records[0].task_title}, {n} seeds", f" {UNITS.get(metric, '%')}".rstrip()
    if compared:
        difference = paired(*scores)
        text = interval(difference.mean, difference.half_width, sign="+") + unit
        half_width, p = difference.half_width or 0.0, LOOKS * (difference.p or 0.0)
    else:
        half_width, p = max(estimate(of_run).half_width or 0.0 for of_run in scores), 1.0
    decided, narrow = half_width > _ROUNDING and p < 0.05, half_width < width
    if compared and (decided or narrow or n == MOST_SEEDS):
        first, second = (run.encoder["name"] for run in records)
        verdict = "not decided" if half_width > _ROUNDING else "the same with every seed"
        verdict = f"decided, p = {p:.2g} after Bonferroni's correction" if decided else verdict
        logger.warning("%s: %s − %s = %s: %s.", where, first, second, text, verdict)
    elif n == MOST_SEEDS and not narrow:
        logger.warning("%s, the most there are: ± %.2f%s is not below %g.", where, half_width, unit, width)
    return decided or narrow or n == MOST_SEEDS
