"""Load pipelines with the call defaults they were trained for; one small trained pipeline ships."""

from __future__ import annotations

import functools
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.signatures import call_parameters
from .core.words import did_you_mean
from .errors import InvalidOptionError, MissingPackageError, UnsupportedModelError
from .untrusted import parse_json, read_text

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, FluxPipeline

DEFAULT_MODEL = "tiny-flux"
CALL_DEFAULTS_FILE = "call_defaults.json"
ASSETS = Path(__file__).with_name("assets")
CHECKOUT_MODELS = Path(__file__).parents[2] / "models"  # more small models, which the repository alone holds
LOCAL_MODELS = "models"
"""The folder, within the current one, in which an installed package finds small models."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_default_pipeline(torch_dtype: torch.dtype | None = None) -> FluxPipeline:
    """The tiny FLUX that ships with this package, ready to be called with a prompt alone.

    It generates the things named in its model card at 64×64 pixels. Nothing is downloaded.

    Args:
        torch_dtype: type of the weights, float32 by default; the file holds float16.
    """
    import torch

    return load_pipeline(ASSETS / DEFAULT_MODEL, torch_dtype=torch.float32 if torch_dtype is None else torch_dtype)


def load_pipeline(name_or_dir: str | Path, **kwargs: Any) -> DiffusionPipeline:
    """Load a pipeline with ``DiffusionPipeline.from_pretrained``.

    A folder that holds a ``call_defaults.json`` gives a pipeline whose call takes its defaults from there;
    what is passed to the call wins.

    Args:
        name_or_dir: a folder, the name of a small model (``named_models`` lists them and their precedence), or an id
            on the Hub. A folder wins over a small model of the same name.
        kwargs: passed on to ``from_pretrained``.

    Raises:
        InvalidOptionError: it is neither a folder nor a small model, and cannot be an id on the Hub; or its folder
            brings Python code of its own and ``trust_remote_code=True`` is not passed.
        MissingPackageError: the Hub does not have the model, or cannot be reached while the cache lacks it.
    """
    from diffusers import DiffusionPipeline

    check_source(name_or_dir)
    folder = _shipped(name_or_dir) or Path(name_or_dir)
    defaults = folder / CALL_DEFAULTS_FILE
    if not folder.exists():
        return _load_from_hub(str(name_or_dir), **kwargs)
    if not kwargs.get("trust_remote_code"):
        _refuse_code(folder)
    if not defaults.is_file():
        return DiffusionPipeline.from_pretrained(folder, **kwargs)
    values = _read_object(defaults)
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(folder, **kwargs)
    pipeline.__class__ = _with_call_defaults(type(pipeline), json.dumps(values))  # type: ignore[arg-type]
    return pipeline


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder."""
    try:
        values = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise InvalidOptionError(f"{path} cannot be read ({error}): download or save the model again") from None
    if not isinstance(values, dict):
        raise InvalidOptionError(f"{path} must hold a JSON object, got {values!r:.40}: save the model again")
    return values


def _refuse_code(folder: Path) -> None:
    """Refuse a folder whose index names Python files of its own, which older versions of diffusers would run."""
    index = folder / "model_index.json"
    if not index.is_file():
        return
    values = _read_object(index)
    named = values.get("_class_name")
    files = [folder / f"{name}.py" for name in (named if isinstance(named, list) else []) if isinstance(name, str)]
    for component, entry in values.items():
        if isinstance(entry, list) and entry and isinstance(entry[0], str):
            files.append(folder / component / f"{entry[0]}.py")
    if code := [file for file in files if file.is_file()]:
        raise InvalidOptionError(
            f"the model {str(folder)!r} brings Python code of its own, {code[0].relative_to(folder)}, which loading it "
            "would run: read that file, and pass trust_remote_code=True if you trust it"
        )


def check_source(source: str | Path, option: str = "") -> None:
    """Refuse a folder or name that cannot be a pipeline. Whether an id on the Hub exists is known when it is loaded.

    Args:
        source: what :func:`load_pipeline` takes.
        option: the option that names it, for the message.

    Raises:
        InvalidOptionError: it is neither a folder of a pipeline, nor a small model, nor written like an id.
    """
    name, folder, models = str(source), Path(source), sorted(named_models())
    given = f"{option} {name!r}".strip()
    if name.strip() and folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InvalidOptionError(
                f"{given} is not a pipeline's folder, since it holds no model_index.json: give a folder that "
                "save_pretrained of a diffusers pipeline wrote"
            )
    elif folder.is_file():
        raise InvalidOptionError(f"{given} is a file: give the folder of a pipeline, with model_index.json")
    elif isinstance(source, str) and source in models:
        return
    elif name.strip() and "/" not in name:
        near = did_you_mean(name, models, similarity=0.75)  # all of them begin with tiny-
        more = "" if len(models) > len(_models_in(ASSETS)) else " (a clone of the repository has more of them)"
        raise InvalidOptionError(
            f"{given} is neither a folder nor a small model that is here{near}: choose one of {', '.join(models)}"
            f"{more}, or write an id on the Hub as OWNER/NAME"
        )
    elif isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise InvalidOptionError(f"{given} does not exist: give a folder of a diffusers pipeline or an id on the Hub")


def _load_from_hub(name: str, **kwargs: Any) -> DiffusionPipeline:
    """Load a pipeline by its id; a failure is one message in place of the libraries' paragraphs."""
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with quiet(progress=True):
            return DiffusionPipeline.from_pretrained(name, **kwargs)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(cause, GatedRepoError):
            problem, advice = "is gated", f"accept its licence on huggingface.co/{name} and run `hf auth login`"
        elif isinstance(cause, RepositoryNotFoundError):
            problem, advice = "does not exist on the Hub, or is private", "check its id, or run `hf auth login`"
        elif cause is not error or isinstance(error, LocalEntryNotFoundError):
            problem = "is not in the cache of this machine, and the Hub cannot be reached"
            advice = "connect to the network once to download it, or give the folder of a copy"
        else:  # the files are here, and broken or of another kind
            raise
        raise MissingPackageError(f"the model {name!r} {problem}: {advice}") from error


def image_to_image(pipe: Any) -> Any:
    """The image-to-image pipeline of a pipeline's family, with the same parts and call defaults.

    A pipeline whose call takes an image is returned as it is.

    Raises:
        UnsupportedModelError: diffusers has no image-to-image pipeline of this family.
    """
    if "image" in call_parameters(pipe):
        return pipe
    with quiet():
        from diffusers import AutoPipelineForImage2Image
    name = type(pipe).__name__
    try:
        converted = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise UnsupportedModelError(
            f"{name} takes no image, and diffusers has no image-to-image pipeline of its family: leave the image out, "
            "or load a model whose pipeline takes one"
        ) from error
    takes = call_parameters(converted)
    defaults = {name: value for name, value in getattr(pipe, "_call_defaults", {}).items() if name in takes}
    if defaults:
        converted.__class__ = _with_call_defaults(type(converted), json.dumps(defaults))  # type: ignore[arg-type]
    return converted


def small_models() -> dict[str, Path]:
    """Names and folders of this package's small trained models: the one that ships, and those of its checkout."""
    return _models_in(CHECKOUT_MODELS) | _models_in(ASSETS)


def named_models() -> dict[str, Path]:
    """Names and folders of all small models that a name can mean here.

    Where two share a name, the one that ships wins, then the checkout's, then that of ``models/`` in the current
    folder: a name means the same model wherever a command runs, and an installed package finds a clone's models.
    """
    return _models_in(Path(LOCAL_MODELS).absolute()) | small_models()


def _models_in(root: Path) -> dict[str, Path]:
    return {file.parent.name: file.parent for file in sorted(root.glob("tiny-*/model_index.json"))}


def _shipped(name: str | Path) -> Path | None:
    """The folder of the small model called `name`, unless the current folder holds a folder of that name."""
    return None if not isinstance(name, str) or Path(name).is_dir() else named_models().get(name)


@functools.cache
def _with_call_defaults(base: type, defaults: str) -> type:
    """A subclass of the pipeline class `base` in which only the defaults of its call differ: those in JSON.

    It bears its base's name: diffusers writes the class's name into ``model_index.json``, and the saved
    pipeline must load without this package.
    """
    values = json.loads(defaults)
    signature = inspect.signature(base.__call__)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name for name, parameter in signature.parameters.items() if parameter.kind in kinds} - {"self"}
    if unknown := values.keys() - known:
        raise InvalidOptionError(
            f"{CALL_DEFAULTS_FILE} names {', '.join(sorted(unknown))}, which {base.__name__} does not take: remove it"
        )

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(self, *args, **kwargs)
        missing = {name: value for name, value in values.items() if bound.arguments.get(name) is None}
        bound.arguments.update(missing)
        return base.__call__(*bound.args, **bound.kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        # Pickle finds classes by their name, which here is the base's: the copy gets this class made anew.
        _, _, *state = super(subclass, self).__reduce_ex__(max(protocol, 2))
        return (_empty_pipeline, (base, defaults), *state)

    parameters = [p.replace(default=values.get(p.name, p.default)) for p in signature.parameters.values()]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    namespace = {"__call__": call, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    namespace["_call_defaults"] = values
    subclass: Any = type(base.__name__, (base,), namespace)
    return subclass  # type: ignore[no-any-return]


def _empty_pipeline(base: type, defaults: str) -> Any:
    """A pipeline with call defaults and without components, for pickle to fill."""
    return object.__new__(_with_call_defaults(base, defaults))


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Hold back notices of parts that a text-to-image pipeline does not use, and progress bars unless wanted."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        if not progress:
            library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, (verbosity, shows_progress) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if shows_progress:
                library.enable_progress_bar()
