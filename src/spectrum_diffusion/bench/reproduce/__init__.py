"""Runs the paper's tables and figures again, on its models or on small trained ones of the same architectures.

Settings and the paper's numbers are data (:mod:`.paper`). :mod:`spectrum_diffusion.bench.evaluate` does the work: an
interrupted run continues where it stopped, and tables that share rows share their images.
"""

from __future__ import annotations

from .page import results_page
from .paper import MODELS, TABLES
from .result import TableResult
from .run import PAGE, Job, run_tables

__all__ = ["MODELS", "PAGE", "TABLES", "Job", "TableResult", "results_page", "run_tables"]
