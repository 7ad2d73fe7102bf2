"""The memory that a method will hold in a generation, known before it runs.

The generation is rehearsed: the pipeline's own call runs with its own scheduler, but each denoiser is a shadow on the
meta device, which computes shapes only. The features that a method keeps have no data then, and all else has the size
of latents. The bytes are those of the real run because the same code keeps them.

Some denoisers read masks or lengths in their forward. For them the rehearsal is repeated with inputs that have values.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .core.allocations import Allocations
from .core.mixed import Mixed, autocast_of_meta
from .core.signatures import call_parameters
from .core.subclass import thin_subclass
from .core.summary import Summary
from .core.words import first_line
from .discovery import denoisers_of, is_pipeline, pipelines_of, schedulers_of
from .errors import InvalidOptionError, SpectrumWarning, UnsupportedModelError
from .methods import AnyMethod, name_of
from .methods.adaptive import AdaptiveMethod
from .sites import denoisers, site_class

FRAMES = ("num_frames", "video_length", "frames")
SAMPLES = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
EMBEDS = "prompt_embeds"
"""How the arguments begin that stand for a prompt; HiDream has one for each text encoder."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What a method will hold in memory during a generation.

    Attributes:
        history_bytes: the most that it holds at any time; ``summary().history_bytes`` after the generation.
        peak_bytes: what the sampling loop's peak lies above that of the untouched pipeline; less than the history
            where the peak is at a step that finds less of it held.
        summary: what the generation will do.
    """

    history_bytes: int
    peak_bytes: int
    summary: Summary

    def __str__(self) -> str:
        history, peak = (nbytes / 2**20 for nbytes in (self.history_bytes, self.peak_bytes))
        return f"history {history:.1f} MiB, peak {peak:.1f} MiB above the untouched pipeline"


def estimate(handle: Any, arguments: Mapping[str, Any]) -> MemoryEstimate:
    """Rehearse a call of the handle's pipeline; see :meth:`Handle.memory_estimate`."""
    pipe = handle.target
    if not is_pipeline(pipe):
        raise UnsupportedModelError(
            "memory_estimate needs a pipeline, which knows the sizes of latents and the calls of a step, and this "
            f"handle has {type(pipe).__name__}: enable the pipeline, or read summary().history_bytes after a short run"
        )
    return rehearse(pipe, _evaluating(handle.method), arguments)


@dataclass(frozen=True)
class _Shape:
    """A tensor without its values. Not a tuple, which would be taken for a container of an output."""

    size: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Shape:
        return cls(tensor.shape, tensor.dtype)

    def zeros(self, device: torch.device | str) -> torch.Tensor:
        return torch.zeros(self.size, dtype=self.dtype, device=device)


class _FusedAttention(TorchFunctionMode):
    """Gives attention the memory of a fused kernel; the meta device would count the whole matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        batch, heads, length, _ = query.shape
        return query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # (B, H, N, D), as kernels do


class Shadows:
    """The denoisers of a rehearsal: models on the meta device that take and return tensors of another device.

    Attributes:
        allocations: counts the memory of the rehearsal; its peak is that of the sampling loop.
        calls: how often a denoiser was called with tensors of which shapes.
        mixed: whether the inputs keep their values, for models that read masks and lengths; only the weights have none.
    """

    def __init__(self, *, mixed: bool = False) -> None:
        self.restart(mixed=mixed)

    def restart(self, *, mixed: bool) -> None:
        """Forget every call."""
        self.mixed = mixed
        self.allocations = Allocations()
        self.calls: Counter[Any] = Counter()
        self._known: dict[Any, tuple[nn.Module, type, Any]] = {}

    def begin(self, key: Any, model: nn.Module, plain: type, arguments: Mapping[str, Any]) -> None:
        """Take note of a call. Nothing but shapes is kept, since tensors would count as memory of the rehearsal."""
        if not self.calls:
            self.allocations.peak = self.allocations.live  # what the text encoders needed is gone
        self.calls[key] += 1
        if key not in self._known:
            self._known[key] = (model, plain, tree_map_only(torch.Tensor, _Shape.of, dict(arguments)))

    def inputs(self) -> Iterator[tuple[nn.Module, dict[str, Any], int]]:
        """For calls of each kind: the model, its arguments on the meta device, and how often it was called so.

        The models are plain from then on.
        """
        for key, (model, plain, shapes) in self._known.items():
            model.__class__ = plain
            yield model, tree_map_only(_Shape, lambda like: like.zeros("meta"), shapes), self.calls[key]

    def run(self, forward: Callable[[], Any], cls: type) -> tuple[Any, int]:
        """Run a forward on the meta device: the shapes of its output, and the memory that it needs beyond what is held.

        Raises:
            UnsupportedModelError: it reads values that there are none of.
        """
        before, peak = self.allocations.live, self.allocations.peak
        self.allocations.peak = before
        try:
            mixed = Mixed() if self.mixed else nullcontext()
            with torch.no_grad(), _FusedAttention(), autocast_of_meta(), mixed:
                shapes = tree_map_only(torch.Tensor, _Shape.of, forward())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise UnsupportedModelError(
                f"{cls.__name__} does not run on the meta device ({first_line(error)}), so its memory cannot be known "
                "before the run: read summary().history_bytes after a short run of the same size"
            ) from error
        needed = self.allocations.peak - before
        self.allocations.peak = max(self.allocations.peak, peak)
        return shapes, needed

    def of(self, model: nn.Module, name: str, *, opaque: bool) -> nn.Module:
        """The shadow of a denoiser.

        Args:
            model: the denoiser; nothing of it changes.
            name: its name in the pipeline.
            opaque: whether nothing inside is intercepted, so that calls of the same shapes may share a result.

        Raises:
            UnsupportedModelError: the model has no configuration.
        """
        shadow = on_meta(model)
        cls: Any = type(shadow)
        results: dict[Any, Any] = {}

        @functools.wraps(cls.forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            device = _device_of((args, kwargs))
            if not shadows.mixed:
                args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            key = (name, *((tensor.shape, tensor.dtype) for tensor in _tensors((args, kwargs))))
            shadows.begin(key, self, cls, kwargs)
            if opaque and key in results:
                shadows.allocations.reach(results[key][1])
            else:
                results.clear()
                results[key] = shadows.run(lambda: cls.forward(self, *args, **kwargs), cls)
            return tree_map_only(_Shape, lambda like: like.zeros(device), results[key][0])

        shadows = self
        shadow.__class__ = thin_subclass(cls, {"forward": forward})
        return shadow


def rehearse(
    pipe: Any, method: AnyMethod, arguments: Mapping[str, Any], shadows: Shadows | None = None
) -> MemoryEstimate:
    """Run a pipeline's call with shadows of its denoisers. The pipeline, its scheduler and the seed stay as they are.

    Args:
        pipe: a pipeline, enabled or not.
        method: whose memory is wanted.
        arguments: of the call, with ``height``, ``width``, ``frames`` and ``batch`` under these names.
        shadows: knows the calls of the untouched pipeline afterwards.

    Raises:
        InvalidOptionError: the pipeline does not take an argument, or needs one that is missing.
        UnsupportedModelError: the cache of another package, or a denoiser that does not run on the meta device.
    """
    if method.observes:
        raise UnsupportedModelError(
            f"{name_of(method)} is the cache of another package, and its memory cannot be known before the run: "
            "measure the peak of a run, or use a method of this library"
        )
    shadows = shadows or Shadows()
    untouched = _untouched(pipe, method.site, arguments, shadows)
    peak, summary = _peak(pipe, method, method.site, arguments, Shadows(mixed=shadows.mixed))
    assert summary is not None
    return MemoryEstimate(summary.history_bytes, peak - untouched, summary)


def _untouched(pipe: Any, site: str, arguments: Mapping[str, Any], shadows: Shadows) -> int:
    """The peak without a method; the inputs keep their values where the denoisers do not run otherwise."""
    try:
        return _peak(pipe, None, site, arguments, shadows)[0]
    except UnsupportedModelError:
        shadows.restart(mixed=True)
    return _peak(pipe, None, site, arguments, shadows)[0]


def _peak(
    pipe: Any, method: AnyMethod | None, site: str, arguments: Mapping[str, Any], shadows: Shadows
) -> tuple[int, Summary | None]:
    """The peak of the sampling loop in bytes, without weights, and what a method did."""
    from .handle import enable_method  # which rehearses for memory_estimate

    opaque = method is None or site_class(site).skips_root
    double = _double(pipe, site, functools.partial(shadows.of, opaque=opaque))
    handle = enable_method(double, method) if method is not None else None
    with _quiet(), shadows.allocations:
        double(**_call_of(pipe, arguments))
    return shadows.allocations.peak, handle.summary() if handle is not None else None


def _evaluating(method: AnyMethod) -> AnyMethod:
    """The method, or, if content decides, with every step evaluated: a shadow has no content, and one feature is kept.

    What an adaptive method keeps does not depend on its decisions.
    """
    return replace(method, threshold=0.0) if isinstance(method, AdaptiveMethod) else method


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a diffusers model on the meta device, with the dtypes of its parameters and without their values.

    Raises:
        UnsupportedModelError: the model has no configuration.
    """
    inner = denoisers.unwrap(model)
    make = getattr(type(inner), "from_config", None)
    if make is None:
        raise UnsupportedModelError(
            f"{type(inner).__name__} has no configuration to build a copy on the meta device from: read "
            "summary().history_bytes after a short run"
        )
    with torch.device("meta"):
        copied: nn.Module = make(inner.config)
    nn.Module.to(copied, "meta")  # what was made from NumPy; diffusers' own `to` warns of dtypes
    dtypes = {name: tensor.dtype for name, tensor in _floating(inner)}
    for name, tensor in _floating(copied):
        tensor.data = tensor.data.to(dtypes.get(name, getattr(inner, "dtype", tensor.dtype)))  # adapters rename layers
    return copied.eval()


def _floating(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights and buffers with their names, without integers such as those of quantized layers."""
    named = (*model.named_parameters(), *model.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def _double(pipe: Any, site: str, shadow: Callable[[nn.Module, str], nn.Module]) -> Any:
    """A pipeline of the same components, with shadows for denoisers and schedulers of its own."""
    if len(pipelines_of(pipe)) > 1:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} is made of several pipelines: enable the pipelines inside it, and ask each for its "
            "memory"
        )
    double = copy.copy(pipe)  # of the plain class
    for _, name in schedulers_of(double):
        setattr(double, name, copy.deepcopy(getattr(pipe, name)))
    for name, model in denoisers_of(pipe, site).items():
        setattr(double, name, shadow(model, name))
    double.set_progress_bar_config(disable=True)
    double._all_hooks = []  # of offload: a call would end with installing them anew, on the shadows too
    device = torch.device(pipe._execution_device)
    device = torch.device("cpu") if device.type == "meta" else device  # a scheduler needs real numbers
    places = {name: property(lambda self: device) for name in ("device", "_execution_device")}
    double.__class__ = thin_subclass(type(double), places)
    return double


def _call_of(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a pipeline's call."""
    known = call_parameters(pipe)
    call = {name: value for name, value in arguments.items() if value is not None}
    for general, names in (("frames", FRAMES), ("batch", SAMPLES)):
        if general in call:
            value = call.pop(general)
            name = next((name for name in names if name in known), general)
            call[name] = value
    if unknown := [name for name in call if name not in known]:
        raise InvalidOptionError(
            f"{type(pipe).__name__} takes no {', '.join(unknown)}: leave it out, or pass one of "
            f"{', '.join(name for name in known if name != 'self')}"
        )
    if "prompt" in known and not any(name == "prompt" or name.startswith(EMBEDS) for name in call):
        call["prompt"] = ""
    if "output_type" in known:
        call["output_type"] = "latent"
    if "generator" in known:
        call.setdefault("generator", torch.Generator().manual_seed(0))  # the global one is left alone
    copied: dict[str, Any] = tree_map_only(torch.Generator, torch.Generator.clone_state, call)
    return copied


@contextmanager
def _quiet() -> Iterator[None]:
    """Without this library's warnings, which the real run gives."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", SpectrumWarning)
        yield


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _device_of(value: Any) -> torch.device:
    return next((tensor.device for tensor in _tensors(value)), torch.device("cpu"))
