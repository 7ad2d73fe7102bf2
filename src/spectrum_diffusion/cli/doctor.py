"""What is installed, what is missing for what, and what this machine can do."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..core.words import counted_name, first_line


@dataclass(frozen=True)
class Package:
    """A package, the module that is imported, what needs it, and how to get it (empty: it must be there)."""

    name: str
    module: str
    purpose: str
    install: str = ""


METRICS_EXTRA = "pip install 'spectrum-diffusion[metrics]'"

PACKAGES = (
    Package("torch", "torch", "everything"),
    Package("diffusers", "diffusers", "pipelines"),
    Package("transformers", "transformers", "text encoders"),
    Package("safetensors", "safetensors.torch", "loading models"),
    Package("numpy", "numpy", "weights of the forecasts"),
    Package("pillow", "PIL.Image", "images"),
    Package("accelerate", "accelerate", "--offload, quick loading of large models", "pip install accelerate"),
    Package("torchmetrics", "torchmetrics.functional.image", "SSIM, MS-SSIM, LPIPS", METRICS_EXTRA),
    Package("flip-evaluator", "flip_evaluator", "FLIP", METRICS_EXTRA),
    Package("ssimulacra2", "ssimulacra2", "SSIMULACRA2", METRICS_EXTRA),
    Package("cvvdp", "pycvvdp", "ColorVideoVDP, beside a torchvision that fits", "pip install cvvdp"),
    Package("datasets", "datasets", "prompts of DrawBench and COCO", "pip install 'spectrum-diffusion[prompts]'"),
    Package("imageio-ffmpeg", "imageio_ffmpeg", "videos as mp4", "pip install 'spectrum-diffusion[video]'"),
    Package("cache-dit", "cache_dit", "its caches in compare", "pip install 'spectrum-diffusion[external]'"),
    Package("torchvision", "torchvision", "image processors of some pipelines", "pip install torchvision"),
)


def examine() -> dict[str, Any]:
    """The report, JSON-ready."""
    from .._version import __version__

    packages = [_examine_package(package) for package in PACKAGES]
    torch_works = packages[0]["state"] == "ok"
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": _devices() if torch_works else [],
        "cpu_bfloat16": _cpu_bfloat16() if torch_works else None,
        "healthy": all(package["state"] == "ok" for package in packages if not package["optional"]),
    }


def _examine_package(package: Package) -> dict[str, Any]:
    try:
        version = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        version = None
    state, problem = ("missing", "") if version is None else _import(package.module)
    return {
        "name": package.name,
        "version": version,
        "state": state,
        "problem": problem,
        "purpose": package.purpose,
        "optional": bool(package.install),
        "install": package.install or "pip install spectrum-diffusion",
    }


def _import(module: str) -> tuple[str, str]:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken build fails in any way: missing libraries, wrong operators …
        return "broken", f"{type(error).__name__}: {first_line(error)}"
    return "ok", ""


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = round(properties.total_memory / 2**30, 1)
        devices.append({"device": f"cuda:{index}", "name": properties.name, "memory_gib": gib})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": platform.machine(), "memory_gib": None})
    devices.append({"device": "cpu", "name": counted_name(torch.get_num_threads(), "thread"), "memory_gib": None})
    return devices


def _cpu_bfloat16() -> str:
    """Whether the CPU multiplies bfloat16 in hardware; without it bfloat16 is slower than float32."""
    import torch

    is_fast = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if is_fast is None:
        return "unknown"
    return "fast" if is_fast() else "slow"
