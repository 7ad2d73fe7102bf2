"""ImageReward of every image of a manifest. Run by the Python of its own environment, not imported.

python run_image_reward.py MANIFEST OUTPUT DEVICE
"""

import json
import os
import sys
from pathlib import Path

CHECKPOINT = os.environ.get("SPECTRUM_IMAGE_REWARD", "ImageReward-v1.0")
"""A file of its weights, or the name under which the package fetches them."""


def main(manifest: Path, output: Path, device: str) -> None:
    import ImageReward
    import torch

    model = ImageReward.load(CHECKPOINT, device=device)
    scores = []
    with torch.no_grad():
        for line in manifest.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            score = model.score(entry["prompt"], str(manifest.parent / entry["file"]))
            scores.append({"file": entry["file"], "score": float(score)})
    output.write_text(json.dumps({"scores": scores}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
