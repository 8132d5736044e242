"""Runs → mean ± 95% CI, tables beside the papers' numbers, plots, a report. Reads run records alone; needs no torch."""

from m2d_bench.results.comparison import Selection, compare
from m2d_bench.results.layers import layer_report
from m2d_bench.results.overview import overview
from m2d_bench.results.render import check_format, render
from m2d_bench.results.statistics import Estimate, estimate
from m2d_bench.results.summary import model_card, report, summary

__all__ = [
    "Estimate",
    "Selection",
    "check_format",
    "compare",
    "estimate",
    "layer_report",
    "model_card",
    "overview",
    "render",
    "report",
    "summary",
]
