"""What determines a result: the pipeline's weights and settings, versions, the machine, and the code of the method.

All of it is part of the key of a result, so that results of two models, versions or machines never mix in a folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .core.signatures import call_parameters
from .discovery import device_of

ROOT = Path(__file__).parent
SHARED = ("*.py", "core/*.py", "sites/*.py")
"""The files of the package that every method runs through. A new method changes no result of another."""
LIBRARIES = ("torch", "diffusers", "transformers")
SET_LATER = ("b1", "b2", "s1", "s2", "scaling", "_active_adapter", "_disable_adapters", "use_tiling", "use_slicing")
"""Attributes of modules: of FreeU, of peft's adapters, of autoencoders."""
SAMPLES = 64
"""Values sampled from each parameter: other weights differ in some of them."""


def key_of(**parts: Any) -> str:
    """A content key: the SHA-256 of its parts as JSON. Tensors, arrays and images count with all their values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_content)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a record holds them: what JSON does not know is told by its content."""
    return json.loads(json.dumps(dict(values), default=_content))  # type: ignore[no-any-return]


def _content(value: Any) -> str:
    """What tells a value that JSON does not know from others."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        return _told_by(value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray | Image.Image):
        array = np.asarray(value)
        return _told_by(getattr(value, "mode", array.dtype), array.shape, array.tobytes())
    return str(value)


def _told_by(kind: Any, shape: tuple[int, ...], data: bytes) -> str:
    return f"{kind} {shape} {hashlib.sha256(data).hexdigest()}"


def fingerprint(pipe: Any) -> str:
    """A digest of a pipeline: classes, configurations, and values sampled from every parameter and buffer.

    It includes offload, compilation, adapters' scales, FreeU, tiling and the attention backend. Weights that are not in
    memory (sequential offload keeps them on the meta device) count by name, shape and dtype.
    """
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(pipe.components.items()):
        digest.update(f"{name}:{type(part).__name__}:{_config(part)}".encode())
        if isinstance(part, nn.Module):
            for key, tensor in part.state_dict().items():
                digest.update(f"{key}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
                digest.update(_sampled(tensor))
            for key, module in part.named_modules():
                if changes := _changes(module):
                    digest.update(f"{key}:{changes}".encode())
    return digest.hexdigest()


def _changes(module: nn.Module) -> dict[str, str]:
    """Changes to a module after its construction that images or times depend on."""
    values = vars(module)
    changes = {name: str(values[name]) for name in SET_LATER if values.get(name)}
    if hook := values.get("_hf_hook"):  # accelerate's
        changes["hook"] = type(hook).__name__
    if (registry := values.get("_diffusers_hook")) and registry.hooks:  # the first call adds an empty registry
        changes["hooks"] = ",".join(registry.hooks)
    if backend := getattr(values.get("processor"), "_attention_backend", None):
        changes["attention"] = str(backend)
    if values.get("_compiled_call_impl") is not None:
        changes["compiled"] = "yes"
    return changes


def _config(part: Any) -> str:
    config = getattr(part, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        return ""
    # Names with an underscore tell where the part was loaded from, which does not affect results.
    kept = {key: value for key, value in values.items() if not str(key).startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def _sampled(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta or not tensor.numel():
        return b""
    flat = tensor.detach().flatten()
    indices = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64)
    return bytes(flat[indices.long().to(flat.device)].double().cpu().numpy().tobytes())


def call_arguments(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with the pipeline's own defaults that are plain values."""
    parameters = call_parameters(pipe).values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, str | int | float | bool)}
    return defaults | dict(call)


def environment(pipe: Any) -> dict[str, Any]:
    """Versions and hardware that results and times depend on."""
    device = device_of(pipe)
    facts: dict[str, Any] = {name: metadata.version(name) for name in LIBRARIES}
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        facts |= {"processor": _processor(), "threads": torch.get_num_threads()}
    return facts


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def code_of(method: type) -> str:
    """A digest of the files that a method's results depend on: its class, its base classes and the shared machinery."""
    return code_of_modules(*(cls.__module__ for cls in method.__mro__), shared=SHARED)


@functools.cache
def code_of_modules(*names: str, shared: tuple[str, ...] = ()) -> str:
    """A digest of the files of modules, and of those that match the patterns ``shared``."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    paths = {Path(file) for file in files if file} | {path for pattern in shared for path in ROOT.glob(pattern)}
    contents = {str(path.relative_to(ROOT) if ROOT in path.parents else path.name): path.read_bytes() for path in paths}
    return key_of(names=names, files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})


def machine() -> dict[str, Any]:
    """The machine, for the manifest."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
    }
