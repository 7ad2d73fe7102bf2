"""The page: three tabs over one studio. It is served on this machine, without Gradio's analytics and sharing."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..core.html import strip, table
from ..core.words import first_line
from ..errors import SpectrumError
from .drawings import feature, key
from .studio import Report, Sample, Studio, Wish, curves, enlarged, psnr

# Before Gradio is imported: it and the Hub's client ask other hosts otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

log = logging.getLogger(__name__)

WAITING = 8
"""Requests that wait; more are refused."""
TITLE = "spectrum-diffusion"
INTRODUCTION = (
    f"# {TITLE}\n\nThe denoiser runs at some steps only. At the others its output is forecast. "
    "The speed-up is the number of steps over the number of evaluated ones. "
    "All times are measured on this machine, one generation each."
)
STEPS_KEY = (("#2563eb", "evaluated"), ("#94a3b8", "skipped"), ("#dc2626", "fallback"))
CSS = ".gradio-container {max-width: 1080px !important; margin: auto} footer {display: none !important}"
LOOK = (
    ".pixels img {image-rendering: pixelated} "
    # Below its image, which it would hide on a phone.
    ".caption-label {position: static !important; flex: none; text-align: left; white-space: normal !important; "
    "max-width: 100% !important; overflow: visible !important; border: none !important} "
    ".thumbnail-lg {height: auto !important; aspect-ratio: auto !important; display: flex !important; "
    "flex-direction: column} "
    ".thumbnail-lg img {aspect-ratio: 1; width: 100%} "
    ".grid-wrap {max-height: none !important} "
    "@media (max-width: 640px) {.grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important} "
    "#drawing svg text {font-size: 24px} #drawing svg circle {r: 8px}} "
    "#facts table, #facts tr, #facts th, #facts td {border: none; padding: 0.15em 0.8em 0.15em 0; vertical-align: top}"
)


class Page:
    """The page's events. One generation runs at a time, whoever asks."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._lock = threading.Lock()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One generation at a time. What goes wrong is shown on the page."""
        try:
            with self._lock:
                yield
        except gr.Error:
            raise
        except SpectrumError as error:
            raise _shown(str(error), "This cannot be generated") from error
        except Exception as error:
            log.exception("a generation failed")
            message = f"the generation failed: {first_line(error)}. The next one starts afresh."
            raise _shown(message, "Generation failed") from error

    def side_by_side(
        self,
        model: str,
        prompt: str,
        steps: int,
        speedup: float,
        seed: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, str]:
        """The untouched and the accelerated image, and what is to be said of them."""
        wish = wish_of(prompt, steps, speedup, seed)
        with self._turn():
            report = reporter(progress, wish.steps, 2)
            untouched = self.studio.sample(model, wish, None, report)
            fast = self.studio.sample(model, wish, "spectrum", report)
        return (enlarged(untouched.image), enlarged(fast.image)), facts(wish, untouched, fast)

    def gallery(
        self,
        model: str,
        prompt: str,
        steps: int,
        speedup: float,
        seed: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[tuple[Any, str]]:
        """An image of each method, at the same speed-up."""
        wish = wish_of(prompt, steps, speedup, seed)
        with self._turn():
            samples = dict(self.studio.gallery(model, wish, reporter(progress, wish.steps, 7)))
        reference = samples["untouched"]
        return [(enlarged(sample.image), caption(name, sample, reference, wish)) for name, sample in samples.items()]

    def record(
        self,
        model: str,
        prompt: str,
        steps: int,
        speedup: float,
        seed: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        """The outputs of an untouched run."""
        wish = wish_of(prompt, steps, speedup, seed)
        with self._turn():
            return self.studio.outputs(model, wish, reporter(progress, wish.steps, 1))

    def build(self) -> gr.Blocks:
        """The page's elements and what they do."""
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.Markdown(INTRODUCTION)
            wish = self._controls()
            with gr.Tab("Side by side"):
                self._side_by_side(wish)
            with gr.Tab("Methods"):
                self._gallery(wish)
            with gr.Tab("The idea"):
                self._idea(wish)
        page.queue(max_size=WAITING, default_concurrency_limit=1)
        return page

    def _controls(self) -> list[Any]:
        first = self.studio.models[0]
        with gr.Row():
            prompt = gr.Textbox("red apple", label="Prompt", max_length=1000, scale=3)
            model = gr.Dropdown(self.studio.models, value=first, label="Model", scale=1)
        with gr.Row():
            steps = gr.Slider(8, 100, self.studio.steps(first), step=1, label="Steps")
            speedup = gr.Slider(1, 8, 3.5, step=0.1, label="Speed-up")
            seed = gr.Number(1, label="Seed", precision=0, minimum=0)
        return [model, prompt, steps, speedup, seed]

    def _side_by_side(self, wish: list[Any]) -> None:
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Row():
            with gr.Column(min_width=320):
                images = gr.ImageSlider(
                    label="Untouched | accelerated", type="pil", format="png", elem_classes="pixels"
                )
            with gr.Column(min_width=320):
                told = gr.HTML("<p>Generate an image to see the difference.</p>", elem_id="facts")
        button.click(
            self.side_by_side,
            wish,
            [images, told],
            concurrency_id="pipeline",
            api_name="side_by_side",
            show_progress_on=images,
        )

    def _gallery(self, wish: list[Any]) -> None:
        gr.Markdown(
            "Methods at equal cost: each evaluates about as many steps. "
            "Methods that decide at run time need `spectrum tune` for that."
        )
        button = gr.Button("Compare methods", variant="primary", elem_id="compare")
        images = gr.Gallery(
            show_label=False, format="png", columns=3, height="auto", object_fit="contain", elem_classes="pixels"
        )
        button.click(self.gallery, wish, images, concurrency_id="pipeline", api_name="gallery")

    def _idea(self, wish: list[Any]) -> None:
        gr.Markdown(
            "One number of the denoiser's output over the steps. Between evaluated steps it has to be forecast."
        )
        button = gr.Button("Record a run", variant="primary", elem_id="record")
        with gr.Row():
            now = gr.Slider(0, 1, 0.5, step=0.02, label="Now: share of the steps that are done")
            rank = gr.Slider(0, 1, 0.75, step=0.01, label="Which number: 0 is easy to forecast, 1 is hard")
        drawing = gr.HTML("<p>Record a run to see it.</p>", elem_id="drawing")
        outputs = gr.State()
        inputs = [outputs, wish[3], now, rank]
        recorded = button.click(self.record, wish, outputs, concurrency_id="pipeline", api_visibility="private")
        recorded.success(draw, inputs, drawing, api_visibility="private")
        gr.on([now.release, rank.release, wish[3].release], draw, inputs, drawing, api_visibility="private")


def wish_of(prompt: str, steps: int, speedup: float, seed: int) -> Wish:
    """The values of the controls, checked."""
    try:
        wish = Wish(prompt=str(prompt or ""), seed=int(seed or 0), steps=int(steps), speedup=float(speedup))
        wish.check()
    except (TypeError, ValueError, SpectrumError) as error:
        raise _shown(str(error), "This cannot be generated") from error
    return wish


def _shown(message: str, title: str) -> gr.Error:
    """An error for the reader of the page. It is no news for the terminal, where Gradio would print a traceback."""
    return gr.Error(message, title=title, duration=None, print_exception=False)


def reporter(progress: Any, steps: int, generations: int) -> Report:
    """Shows the steps of several generations as one progress bar."""
    labels: list[str] = []

    def report(step: int, label: str) -> None:
        if label not in labels:
            labels.append(label)
        done = (len(labels) - 1) * steps + step
        progress((done, generations * steps), desc=f"{label}: step {step} of {steps}", unit="steps")

    return report


def facts(wish: Wish, untouched: Sample, fast: Sample) -> str:
    """Similarity, measured times and the evaluated steps."""
    summary = fast.summary
    assert summary is not None
    rows = [
        ("PSNR", f"{decibels(psnr(fast.image, untouched.image))} to the untouched image"),
        ("evaluated", f"{summary.nfe} of {wish.steps} steps ({summary.speedup:.2f}x fewer)"),
        ("time, untouched", f"{untouched.seconds:.2f} s measured"),
        ("time, accelerated", f"{fast.seconds:.2f} s measured ({untouched.seconds / fast.seconds:.2f}x faster)"),
        *((f"fallback at step {step}", reason) for step, reason in summary.fallbacks.items()),
        *(("note", note) for note in summary.notes),
    ]
    drawn = strip(wish.steps, summary.evaluated, summary.fallbacks)
    return f"<div><b>Which steps were evaluated</b>{drawn}{key(STEPS_KEY)}{table(rows)}</div>"


def caption(name: str, sample: Sample, reference: Sample, wish: Wish) -> str:
    """What is to be said below an image of the gallery."""
    if sample.summary is None:
        return f"{name}: {wish.steps} evaluated, {sample.seconds:.1f} s"
    closeness = decibels(psnr(sample.image, reference.image))
    return f"{name}: {sample.summary.nfe} evaluated, {closeness}, {sample.seconds:.1f} s"


def decibels(value: float) -> str:
    """A PSNR in words."""
    return "identical" if value == float("inf") else f"{value:.1f} dB"


def draw(outputs: Any, speedup: float, now: float, rank: float) -> str:
    """The drawing of a recorded run."""
    if outputs is None:
        return "<p>Record a run to see it.</p>"
    return feature(curves(outputs, speedup, round(now * (len(outputs) - 1)), rank))


def launch(studio: Studio, host: str, port: int, **options: Any) -> Any:
    """Serve the page until Ctrl-C; nothing of it is shared or sent elsewhere."""
    return (
        Page(studio)
        .build()
        .launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme(),
            css=CSS + LOOK,
            **options,
        )
    )


def theme() -> gr.themes.Base:
    """Fonts of the reader's machine: Gradio's own come from another host."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
