"""Speed and memory of methods on full-size architectures with random weights: ``spectrum bench``."""

from .architectures import ARCHITECTURES, Architecture
from .build import Setting, build
from .measure import Row, Speed, dry_run, measure_speed

__all__ = ["ARCHITECTURES", "Architecture", "Row", "Setting", "Speed", "build", "dry_run", "measure_speed"]
