"""Run the core tests with the lowest versions that pyproject.toml allows, and with the newest that exist.

python .ci/versions.py [lowest] [newest]

Each environment is created in a temporary folder with the Python that runs this script, and deleted afterwards.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUNDED = ("torch", "diffusers", "transformers")
TOOLS = ("pytest>=8", "hypothesis>=6.100", "accelerate>=1.0", "ftfy>=6", "scipy>=1.11")
"""What the tests need. ftfy and scipy are for pipelines and schedulers of older diffusers."""
CORE = ("schedule", "forecast", "history", "run", "axis", "own_loop", "aborts", "hooks", "methods", "loops", "changes")
DESELECTED = {"lowest": "not QwenImage and not compile and not step_is_unknown"}
"""The lowest diffusers lacks arguments of the tests' QwenImage and names of SkyReels-V2's branches, and the lowest
PyTorch fails to compile its attention (docs/compatibility.md)."""


def lowest(requirements: str) -> list[str]:
    """Requirements with the lowest version of each bounded package, from the text of pyproject.toml."""
    bounds = dict(re.findall(r'^ *"([\w-]+)>=([\d.]+)",$', requirements, re.MULTILINE))
    return [f"{package}=={bounds[package]}" for package in BOUNDED]


def test(bounds: str) -> int:
    """Exit code of the core tests with these versions."""
    pins = lowest((ROOT / "pyproject.toml").read_text(encoding="utf-8")) if bounds == "lowest" else []
    with tempfile.TemporaryDirectory(prefix="spectrum-versions-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python"))
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *TOOLS, *pins, str(ROOT)]
        subprocess.run(install, check=True)
        subprocess.run([python, "-m", "pip", "list"], check=True)
        tests = [str(path) for name in CORE for path in (ROOT / "tests").rglob(f"test_{name}.py")]
        command = [python, "-m", "pytest", "-m", "not slow and not gpu", "-k", DESELECTED.get(bounds, ""), *tests]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> None:
    failed = [bounds for bounds in sys.argv[1:] or ("lowest", "newest") if test(bounds)]
    sys.exit(f"core tests fail with the {' and the '.join(failed)} versions" if failed else 0)


if __name__ == "__main__":
    main()
