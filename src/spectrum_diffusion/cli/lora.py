"""LoRAs of the command line: ``PATH[:scale]``, loaded into a pipeline before it is placed on its device."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.words import first_line
from ..errors import InvalidOptionError, MissingPackageError, UnsupportedModelError
from ..loading import quiet

_HUB_LORA = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+)*")


def parse_lora(text: str) -> tuple[str, float]:
    """``style.safetensors:0.8`` → what to load, and its scale: 1 if none is given.

    Raises:
        InvalidOptionError: the scale is not a finite number, or the file does not exist.
    """
    source, _, scale = text.rpartition(":")
    try:
        value = float(scale) if source else 1.0
    except ValueError:
        value = math.nan
        if not Path(source).exists():  # a colon of the path
            source, value = text, 1.0
    source = source or text
    if not math.isfinite(value):
        raise InvalidOptionError(f"--lora {text!r} has the scale {scale}: give a finite number, as in {source}:0.8")
    if not Path(source).exists() and not _HUB_LORA.fullmatch(source):
        raise InvalidOptionError(
            f"--lora {source!r} does not exist: give a .safetensors file, a folder with one, or OWNER/NAME or "
            "OWNER/NAME/FILE on the Hub"
        )
    return source, value


def load_loras(pipe: Any, loras: Sequence[str]) -> None:
    """Load LoRAs into a pipeline and set their scales.

    Raises:
        UnsupportedModelError: the pipeline has no LoRA loader.
        InvalidOptionError: a LoRA does not exist, or does not fit the pipeline.
        MissingPackageError: peft is not installed.
    """
    if not loras:
        return
    name = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedModelError(f"{name} has no LoRA loader: leave out --lora, or merge it into the weights")
    if importlib.util.find_spec("peft") is None:
        raise MissingPackageError("--lora needs the package peft: pip install peft")
    scales = {}
    for index, text in enumerate(loras):
        source, scale = parse_lora(text)
        scales[f"lora{index}"] = scale
        _load_lora(pipe, source, f"lora{index}")
    pipe.set_adapters(list(scales), list(scales.values()))


def _load_lora(pipe: Any, source: str, adapter: str) -> None:
    # diffusers takes a file of a folder or of a repository, and guesses its name where there is one file.
    path, parts = Path(source), source.split("/")
    place, file = (str(path.parent), path.name) if path.is_file() else ("/".join(parts[:2]), "/".join(parts[2:]))
    if path.is_dir():
        place, file = source, ""
    try:
        with quiet():
            pipe.load_lora_weights(place, adapter_name=adapter, **({"weight_name": file} if file else {}))
    except Exception as error:  # not found, no network, broken or of another model: of many libraries
        reason = f"--lora {source!r} cannot be loaded into {type(pipe).__name__} ({first_line(error)})"
        raise InvalidOptionError(f"{reason}: give a LoRA that was trained for this model") from error
    # Weights of another model are ignored with a notice in the log.
    if not any(adapter in adapters for adapters in pipe.get_list_adapters().values()):
        raise InvalidOptionError(
            f"--lora {source!r} has no weights for {type(pipe).__name__}: give a LoRA that was trained for this model"
        )
