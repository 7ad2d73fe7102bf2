"""stub"""

from .results import Results
from .store import Store


def write_report(results: Results, store: Store) -> None: ...
