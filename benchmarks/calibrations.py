"""Calibrate TeaCache and MagCache for the model that ships: `python -m benchmarks.calibrations --write`.

It uses every fourth prompt of the contact sheet, with a seed that no other measurement here uses. The entries are
printed; `--write` also replaces them in the package's `methods/calibrations.json` and keeps those of other models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import spectrum_diffusion
from spectrum_diffusion.methods import adaptive
from spectrum_diffusion.tune import tune_threshold

PROMPTS = Path(__file__).parents[1] / "training" / "contact_sheet_prompts.txt"
DATA = Path(adaptive.__file__).with_name("calibrations.json")
SEED = 1000
NFE = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {DATA.name}")
    write = parser.parse_args().write
    data = json.loads(DATA.read_text(encoding="utf-8"))
    for method, options in (("teacache", ("coefficients", "threshold")), ("magcache", ("ratios",))):
        model, entry = measured(method, options)
        data[method][model] = entry
        print(method, model, json.dumps(entry))
    if write:
        DATA.write_text(shown(data), encoding="utf-8")


def measured(method: str, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The denoiser's identity and its entry."""
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompts = PROMPTS.read_text(encoding="utf-8").split("\n")[:60:4]
    (plan,) = tune_threshold(pipe, method, prompts, nfe=NFE, seeds=[SEED])
    options = {name: plan.options[name] for name in names}
    return plan.model, {**options, "source": "tiny-flux, 50 steps: python -m benchmarks.calibrations --write"}


def shown(data: dict[str, dict[str, Any]]) -> str:
    """JSON with one line per option."""
    methods = []
    for method, models in data.items():
        entries = [
            f'    "{model}": {{\n' + ",\n".join(f'      "{k}": {json.dumps(v)}' for k, v in entry.items()) + "\n    }"
            for model, entry in models.items()
        ]
        methods.append(f'  "{method}": {{\n' + ",\n".join(entries) + "\n  }")
    return "{\n" + ",\n".join(methods) + "\n}\n"


if __name__ == "__main__":
    main()
