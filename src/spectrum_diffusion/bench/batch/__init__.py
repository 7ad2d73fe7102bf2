"""Many prompts, on one machine or many: exactly one file for each prompt and seed, whatever is killed meanwhile.

The name of a file holds a key of everything that determines its contents, and a file gets its name only when it is
whole. So a file that exists is done, any process may make any file, and the same command finishes an interrupted job.
"""

from __future__ import annotations

from .generator import Generator, Outcome
from .plan import Item, Job, Plan
from .report import Report

__all__ = ["Generator", "Item", "Job", "Outcome", "Plan", "Report"]
