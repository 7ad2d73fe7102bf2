"""What a batch costs beside the pipeline: planning, manifest, looking for what exists, starting a cluster.

    python -m benchmarks.batch --write docs/scaling.md

takes minutes and about 2 GB of disk, and needs the extra ``ray``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectrum_diffusion.bench.batch import Job, Plan
from spectrum_diffusion.bench.batch.plan import MANIFEST
from spectrum_diffusion.bench.evaluate.request import Row

from .marks import replace_block

MILLION = 1_000_000
EXISTING = 100_000


@contextmanager
def timed(rows: list[tuple[str, str]], what: str) -> Iterator[None]:
    begin, cpu = time.perf_counter(), time.process_time()
    yield
    rows.append((what, f"{time.process_time() - cpu:.1f} s of a CPU, {time.perf_counter() - begin:.0f} s in all"))


def measure(folder: Path) -> list[tuple[str, str]]:
    """The lines of the table."""
    rows: list[tuple[str, str]] = []
    prompts = [f"a photograph of number {i}, in the style of the others, at dusk" for i in range(MILLION)]
    settings = {"method": "spectrum", "call": {"num_inference_steps": 50}}
    job = Job(
        load=dict, save=lambda *_: None, provenance=lambda *_: {}, row=Row("spectrum"), call={}, settings=settings,
        folder=folder,
    )  # fmt: skip
    with timed(rows, "plan 1,000,000 items"):
        plan = Plan.of(job, prompts, [0])
    with timed(rows, "write the manifest"):
        plan.write_manifest()
    rows.append(("size of the manifest", f"{(folder / MANIFEST).stat().st_size / 1e6:.0f} MB"))
    rows.append(
        ("memory of the planning process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    )
    for item in plan.items[:EXISTING]:
        path = folder / item.file
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with timed(rows, "plan again with 100,000 files there"):
        again = Plan.of(job, prompts, [0])
    assert len(again.missing) == MILLION - EXISTING
    rows.append(("connect to a new local Ray", f"{_ray_seconds():.1f} s"))
    return rows


def _ray_seconds() -> float:
    import ray

    begin = time.perf_counter()
    ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
    seconds = time.perf_counter() - begin
    ray.shutdown()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    page = parser.parse_args().write
    folder = Path(tempfile.mkdtemp())
    try:
        rows = measure(folder)
    finally:
        shutil.rmtree(folder)
    lines = ["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    table = "\n".join([*lines, "", f"{platform.machine()}, {os.cpu_count()} CPUs shared with other work, local disk."])
    print(table)
    if page:
        replace_block(page, table, "batch")


if __name__ == "__main__":
    main()
