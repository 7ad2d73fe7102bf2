"""VBench's Quality Score: Huang et al.: VBench: Comprehensive Benchmark Suite for Video Generative Models, 2024.

    Quality = 100 · Σ_d w_d (s_d − min_d) / (max_d − min_d) / Σ_d w_d

over seven dimensions. The limits and weights are those of VBench's leaderboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....errors import InvalidOptionError


@dataclass(frozen=True)
class Dimension:
    """The values that a dimension is scaled between, and its weight."""

    low: float
    high: float
    weight: float = 1.0


QUALITY: dict[str, Dimension] = {
    "subject_consistency": Dimension(0.1462, 1.0),
    "background_consistency": Dimension(0.2615, 1.0),
    "temporal_flickering": Dimension(0.6293, 1.0),
    "motion_smoothness": Dimension(0.706, 0.9975),
    "aesthetic_quality": Dimension(0.0, 1.0),
    "imaging_quality": Dimension(0.0, 1.0),
    "dynamic_degree": Dimension(0.0, 1.0, weight=0.5),
}
"""The dimensions of the Quality Score, by VBench's names."""


SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "temporal_style",
    "appearance_style",
    "overall_consistency",
)
"""VBench's other dimensions, which the Quality Score ignores."""


def quality_dimensions(category: str) -> str | None:
    """The dimensions in which a video is judged, by its prompt's category; empty for all seven.

    None for a prompt of VBench that is meant for other dimensions. Categories of other lists have no effect.
    """
    named = [name for name in category.split(",") if name in QUALITY or name in SEMANTIC]
    wanted = [name for name in named if name in QUALITY]
    return ",".join(wanted) if wanted or not named else None


def vbench_quality(scores: Mapping[str, float]) -> float:
    """The Quality Score of a model, 0 … 100; higher is better.

    Args:
        scores: VBench's value in each of the seven dimensions, 0 … 1; others are ignored.

    Raises:
        InvalidOptionError: a dimension is missing, or its value is not within [0, 1].
    """
    missing = sorted(QUALITY.keys() - scores.keys())
    if missing:
        raise InvalidOptionError(f"VBench's Quality Score needs {', '.join(missing)} too: run VBench in all seven")
    wrong = {name: scores[name] for name in QUALITY if not 0 <= scores[name] <= 1}
    if wrong:
        raise InvalidOptionError(f"VBench's values lie within [0, 1], but here {wrong}: divide percentages by 100")
    total = sum(d.weight * (scores[name] - d.low) / (d.high - d.low) for name, d in QUALITY.items())
    return 100 * total / sum(d.weight for d in QUALITY.values())
