"""Run diffusers' own pipeline tests without the library and with it, and list the tests that end differently.

python -m diffusers_suite DIFFUSERS [--only flux sdxl …] [--leave-out lora …]

DIFFUSERS is a checkout of diffusers, or a git directory. plugin.py says in which modes a test runs. Tests that have run
are not run again, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from . import hub
from .plugin import MODES

ROOT = Path(__file__).parents[2]
SECOND_CACHE = "ConflictError"
"""How the library refuses a model that another cache stands on, which some tests try."""


def tests_of(diffusers: Path, out: Path) -> Path:
    """The folder that holds diffusers' ``tests``, extracted from a git directory if need be."""
    if (diffusers / "tests" / "pipelines").is_dir():
        return diffusers
    checkout = out / "checkout"
    if not checkout.is_dir():
        checkout.mkdir()
        archive = subprocess.run(
            ["git", f"--git-dir={diffusers}", "archive", "HEAD", "tests"], stdout=subprocess.PIPE, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True)
    return checkout


def run(checkout: Path, out: Path, log: Path, only: list[str], left_out: list[str]) -> int:
    """Run what the log does not name yet; the exit code of pytest, negative if the process died."""
    environment = {
        **os.environ,
        "HF_HOME": str(out / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
    }
    command = [sys.executable, "-m", "pytest", "-p", "diffusers_suite.plugin", "-q", "--rootdir", str(checkout)]
    command += ["--spectrum-log", str(log), "-k", " and ".join(f"not {word}" for word in left_out)]
    command += [f"tests/pipelines/{folder}" for folder in only or [""]]
    with (out / "pytest.txt").open("a") as printed:
        return subprocess.run(command, cwd=checkout, env=environment, stdout=printed, stderr=printed).returncode


def report(records: list[dict[str, Any]]) -> int:
    """Print counts and differences; the number of differences but those of a second cache."""
    outcomes: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        if "outcome" in record:
            outcomes.setdefault(record["test"], {})[record["mode"]] = record
    unexplained = 0
    for mode in MODES:
        counts = Counter(ended[mode]["outcome"] for ended in outcomes.values() if mode in ended)
        print(f"{mode}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}")
    for test, ended in outcomes.items():
        for record in ended.values():
            if record["outcome"] != ended["without"]["outcome"]:
                kind = "second cache" if SECOND_CACHE in record["message"] else "DIFFERENT"
                unexplained += kind == "DIFFERENT"
                print(f"{kind}: {test}: {record['mode']}: {record['outcome']}: {' '.join(record['message'].split())}")
    return unexplained


def report_pipelines(records: list[dict[str, Any]]) -> None:
    """Print how many pipeline classes skipped steps, and why others did not."""
    called = {record["pipeline"] for record in records if "pipeline" in record}
    skipped = {r["pipeline"] for r in records if "summary" in r and r["summary"]["nfe"] < r["summary"]["steps"]}
    print(f"{len(skipped)} of {len(called)} pipeline classes skipped steps")
    for name in sorted(called - skipped):
        refused = {r["refused"] for r in records if r.get("pipeline") == name and "refused" in r}
        print(f"nothing skipped: {name}: {'; '.join(sorted(refused)) or 'every call was evaluated'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffusers_suite", description=__doc__.split("\n")[0])
    parser.add_argument("diffusers", type=Path, help="a checkout of diffusers, or a git directory")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "diffusers_suite", help="folder of the log")
    parser.add_argument("--only", nargs="*", default=[], help="folders of tests/pipelines; all of them by default")
    parser.add_argument("--leave-out", nargs="*", default=["lora", "quantization"], help="words of tests left out")
    parser.add_argument("--report", action="store_true", help="run nothing, and report what has run")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    if not arguments.report:
        hub.write(out / "hub")
        checkout = tests_of(arguments.diffusers.resolve(), out)
        while run(checkout, out, log, arguments.only, arguments.leave_out) < 0:
            print("pytest died; going on after the test that did it", file=sys.stderr)
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    differences = report(records)
    report_pipelines(records)
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
