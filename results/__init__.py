"""Runs → mean ± 95% CI and tables. Reads run records alone; needs no torch."""

from m2d_bench.results.statistics import Estimate, estimate
from m2d_bench.results.tables import check_format, report, summary

__all__ = ["Estimate", "check_format", "estimate", "report", "summary"]
