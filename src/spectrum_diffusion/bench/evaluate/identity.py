"""What determines a result: the pipeline's weights and settings, versions, the machine, the code of the method.

All of it goes into the key of a result, so that results of two models, versions or machines in one folder never mix.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import device_of

PACKAGE = __name__.partition(".")[0]
REGISTRIES = (PACKAGE, f"{PACKAGE}.methods", f"{PACKAGE}.interop")
"""Modules that import everything: a new method changes no result of another."""
LIBRARIES = ("torch", "diffusers", "transformers")
SET_LATER = ("b1", "b2", "s1", "s2", "scaling", "_active_adapter", "_disable_adapters", "use_tiling", "use_slicing")
"""Attributes of modules: of FreeU, of peft's adapters, of autoencoders."""
SAMPLES = 64
"""Values looked at in each parameter: other weights differ in some of them."""


def key_of(**parts: Any) -> str:
    """A content key: the SHA-256 of its parts as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(pipe: Any) -> str:
    """A digest of a pipeline's parts: classes, configurations, and values sampled from every parameter and buffer.

    And of what was done to them: offload, compilation, adapters' scales, FreeU, tiling, the backend of attention.

    Weights that are not in memory (sequential offload keeps them on the meta device) count by name, shape and dtype.
    """
    whole = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(pipe.components.items()):
        whole.update(f"{name}:{type(part).__name__}:{_config(part)}".encode())
        if isinstance(part, nn.Module):
            for key, tensor in part.state_dict().items():
                whole.update(f"{key}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
                whole.update(_sampled(tensor))
            for key, module in part.named_modules():
                if changes := _changes(module):
                    whole.update(f"{key}:{changes}".encode())
    return whole.hexdigest()


def _changes(module: nn.Module) -> dict[str, str]:
    """What was put on a module after it was made, as far as pictures or times depend on it."""
    values = vars(module)
    found = {name: str(values[name]) for name in SET_LATER if values.get(name)}
    if hook := values.get("_hf_hook"):  # accelerate's
        found["hook"] = type(hook).__name__
    if (registry := values.get("_diffusers_hook")) and registry.hooks:  # an empty one comes with the first call
        found["hooks"] = ",".join(registry.hooks)
    if backend := getattr(values.get("processor"), "_attention_backend", None):
        found["attention"] = str(backend)
    if values.get("_compiled_call_impl") is not None:
        found["compiled"] = "yes"
    return found


def _config(part: Any) -> str:
    config = getattr(part, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        return ""
    # Names with an underscore say where the part was loaded from, which changes nothing.
    kept = {key: value for key, value in values.items() if not str(key).startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def _sampled(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta or not tensor.numel():
        return b""
    flat = tensor.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64)
    return bytes(flat[places.long().to(flat.device)].double().cpu().numpy().tobytes())


def call_arguments(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the pipeline's own defaults, as far as they are plain values."""
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    plain = (str, int, float, bool)
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, plain)}
    return defaults | dict(call)


def environment(pipe: Any) -> dict[str, Any]:
    """Versions and the machine, as far as results and times depend on them."""
    device = device_of(pipe)
    found: dict[str, Any] = {name: metadata.version(name) for name in LIBRARIES}
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        found |= {"processor": _processor(), "threads": torch.get_num_threads()}
    return found


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def code_of(method: type) -> str:
    """A digest of the code that a method's results depend on, comments and docstrings left out.

    That is the modules of its class and what they import of this package, and the machinery that all methods share.
    """
    modules = {f"{PACKAGE}.handle", *(cls.__module__ for cls in method.__mro__ if cls.__module__ != "builtins")}
    return _code(frozenset(modules))


def code_of_module(name: str) -> str:
    """A digest of a module and what it imports of this package, as :func:`code_of`."""
    return _code(frozenset({name}))


@functools.cache
def _code(start: frozenset[str]) -> str:
    found: dict[str, str] = {}
    waiting = sorted(start)
    while waiting:
        name = waiting.pop()
        if name in found or name in REGISTRIES:
            continue
        tree = _tree(name)
        found[name] = "" if tree is None else ast.dump(_without_docstrings(tree))
        waiting += _imported(name, tree) if tree is not None and name.startswith(PACKAGE) else []
    return key_of(**found)


def _tree(name: str) -> ast.Module | None:
    try:
        spec = importlib.util.find_spec(name)
        return ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, ValueError, OSError, SyntaxError):  # typed in, or compiled: known by its name alone
        return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return tree


def _is_text(statement: ast.AST) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)


def _imported(name: str, tree: ast.Module) -> Iterable[str]:
    """The modules of this package that one of them imports, also inside of functions."""
    spec = importlib.util.find_spec(name)
    parent = spec.parent if spec and spec.parent else PACKAGE
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [module for module in found if module.startswith(PACKAGE) and _is_module(module)]


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a name in a module, not a module in a package
        return False


def machine() -> dict[str, Any]:
    """The machine, for the manifest."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
    }
