"""Where are the forecasts bad? An audit evaluates every step, samples as if it had skipped, and compares."""

import json
from pathlib import Path

import torch

import spectrum_diffusion

OUT = Path("out/audit")


def main() -> dict[str, object]:
    """Audit one generation; return its steps and the errors of its forecasts, and save them as JSON."""
    steps: list[tuple[int, str, str, str]] = []

    def on_step(step: int, branch: str, action: str, reason: str) -> None:
        steps.append((step, branch, action, reason))

    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with spectrum_diffusion.enable(pipe, audit=True, on_step=on_step) as handle:
        pipe("panda", generator=torch.Generator().manual_seed(0))
        summary = handle.summary()

    for step, error in summary.errors.items():
        print(f"step {step:>2}  {error:7.4f}  {'#' * round(200 * error)}")
    print(summary)
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"steps": steps, "summary": summary.to_dict()}
    (OUT / "audit.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"The report is in {OUT}")
    return report


if __name__ == "__main__":
    main()
