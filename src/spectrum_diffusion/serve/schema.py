"""The bodies of requests and answers, as OpenAI's images API has them, with what is specific to this server.

Limits of the server are part of the schema, so the OpenAPI document states them.
"""

from __future__ import annotations

import base64
import io
import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..core.schedule import MAX_TOTAL
from ..errors import InvalidOptionError
from .abilities import UNTOUCHED, Abilities, Settings
from .engine import Generated, Item
from .failures import RequestError
from .limits import Limits
from .worker import Task

MAX_SEED = 2**63 - 1
RANDOM_SEEDS = 2**32
"""Seeds of requests without one are drawn below this."""
JPEG_QUALITY = 95
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class ImageRequest(BaseModel):
    """What does not depend on the limits of the server. ``request_model`` adds the rest."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="A name of GET /v1/models.")
    size: str = Field("auto", pattern=SIZE, description="WIDTHxHEIGHT in pixels, or auto.")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = Field(
        "auto",
        description="high and hd evaluate every step, low has the largest speedup that the server and the number of "
        "steps allow; the others are the server's default.",
    )
    response_format: Literal["b64_json"] = Field("b64_json", description="The server stores no images to link to.")
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp.")
    stream: bool | None = Field(False, description="Send events: the steps done, then each image.")
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    user: str | None = Field(None, max_length=200, description="Not used.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Seed of the first image; the next have seed+1, …")
    guidance: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    true_cfg_scale: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False, description="Real guidance, for pipelines with distilled guidance."
    )

    # Added by request_model:
    prompt: str
    n: int | None
    steps: int | None
    speedup: float | None
    negative_prompt: str | None

    @property
    def count(self) -> int:
        return self.n or 1

    def settings(self, abilities: Abilities, limits: Limits) -> Settings:
        """What the images share, checked against the pipeline and the limits.

        Raises:
            RequestError: the pipeline cannot do it, or two fields contradict each other.
        """
        settings = Settings(
            size=self._size(limits),
            steps=self.steps,
            guidance=self.guidance,
            true_guidance=self.true_cfg_scale,
            speedup=self._speedup(abilities, limits),
            negative=self.negative_prompt is not None,
        )
        if (steps := abilities.steps(settings)) is not None and steps > limits.steps:
            raise RequestError(
                f"the pipeline takes {steps} steps by default, but this server allows {limits.steps}: pass steps",
                param="steps",
            )
        try:
            abilities.check(settings)
        except InvalidOptionError as error:
            raise RequestError(str(error)) from None
        return settings

    def _size(self, limits: Limits) -> tuple[int, int] | None:
        if self.size == "auto":
            return None
        width, height = map(int, self.size.split("x"))
        if max(width, height) > limits.side:
            raise RequestError(
                f"size={self.size!r} has a side above {limits.side} pixels, which this server does not allow: pass a "
                "smaller size",
                param="size",
            )
        return width, height

    def _speedup(self, abilities: Abilities, limits: Limits) -> float | None:
        if self.speedup is not None and self.quality != "auto":
            raise RequestError(
                f"speedup={self.speedup:g} and quality={self.quality!r} both set the speed-up: pass one of them",
                param="speedup",
            )
        if self.quality in ("high", "hd"):
            return UNTOUCHED
        return abilities.fastest(limits.speedup, self.steps) if self.quality == "low" else self.speedup

    def tasks(self, settings: Settings, deadline: float) -> list[Task]:
        """A task for each image, with a seed of its own."""
        first = secrets.randbelow(RANDOM_SEEDS) if self.seed is None else self.seed
        return [
            Task(
                Item(prompt=self.prompt, seed=(first + i) % (MAX_SEED + 1), negative_prompt=self.negative_prompt),
                settings,
                deadline,
            )
            for i in range(self.count)
        ]

    def encoded(self, generated: Generated) -> str:
        """The image of a finished task in the wanted format, base64."""
        assert generated.image is not None
        quality = JPEG_QUALITY if self.output_compression is None else self.output_compression
        options = {} if self.output_format == "png" else {"quality": quality}
        buffer = io.BytesIO()
        generated.image.save(buffer, self.output_format, **options)
        return base64.b64encode(buffer.getvalue()).decode()


def request_model(limits: Limits) -> type[ImageRequest]:
    """The request's schema with the limits of a server."""
    model: type[ImageRequest] = create_model(
        "ImageGenerationRequest",
        __base__=ImageRequest,
        prompt=(str, Field(min_length=1, max_length=limits.prompt, pattern=r"\S")),
        n=(int | None, Field(1, ge=1, le=limits.images)),
        steps=(int | None, Field(None, ge=1, le=min(limits.steps, MAX_TOTAL), description="Sampling steps.")),
        speedup=(
            float | None,
            Field(None, ge=1, le=limits.speedup, allow_inf_nan=False, description="Steps over evaluated steps."),
        ),
        negative_prompt=(str | None, Field(None, min_length=1, max_length=limits.prompt)),
    )
    return model


class Done(BaseModel):
    """What was done for an image.

    Attributes:
        batch: images in the call of the pipeline.
        seconds: of this call.
    """

    seed: int
    method: str
    steps: int
    nfe: int
    speedup: float
    evaluated: list[int]
    fallbacks: dict[str, str]
    batch: int
    seconds: float


class ImageData(BaseModel):
    b64_json: str
    spectrum: Done


class ImageAnswer(BaseModel):
    created: int
    data: list[ImageData]
    output_format: str
    quality: str
    size: str
    background: str = "opaque"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "spectrum-diffusion"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    waiting: int
    replicas: int


def image_data(request: ImageRequest, task: Task, generated: Generated) -> ImageData:
    """The part of an answer for one image."""
    facts = generated.summary.to_dict()
    done = Done(
        seed=task.item.seed,
        steps=generated.steps,
        speedup=generated.speedup,
        batch=task.batch,
        seconds=task.seconds,
        **{name: facts[name] for name in ("method", "nfe", "evaluated", "fallbacks")},
    )
    return ImageData(b64_json=request.encoded(generated), spectrum=done)


def common(request: ImageRequest, generated: Generated) -> dict[str, Any]:
    """The fields of an answer that its images share."""
    assert generated.image is not None
    return {
        "created": int(time.time()),
        "output_format": request.output_format,
        "quality": request.quality,
        "size": "x".join(map(str, generated.image.size)),
        "background": "opaque",
    }
