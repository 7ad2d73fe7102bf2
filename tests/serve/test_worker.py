"""The queue and the thread behind it: what shares a call, what fails alone, what ends early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from extras import needs

needs("prometheus_client")

from spectrum_diffusion import InvalidOptionError, UnsupportedModelError, load_default_pipeline
from spectrum_diffusion.serve.abilities import UNTOUCHED, Settings
from spectrum_diffusion.serve.engine import Engine, Item, LostError
from spectrum_diffusion.serve.failures import DeadlineError, GenerationError, QueueFullError, ShuttingDownError
from spectrum_diffusion.serve.limits import Limits
from spectrum_diffusion.serve.worker import Task, Worker

PROMPTS = ("red apple", "panda", "blue car", "green tree")
CALL = Settings(steps=12)
WAIT = 60.0


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def hooked(pipe: Any) -> Iterator[Callable[..., None]]:
    """Install a forward hook for one test, on the denoiser or another part of the pipeline."""
    handles = []

    def install(hook: Callable[..., Any], part: str = "transformer") -> None:
        name, _, inner = part.partition(".")
        handles.append(getattr(pipe, name).get_submodule(inner).register_forward_hook(hook))

    yield install
    for handle in handles:
        handle.remove()


@pytest.fixture
def start(pipe: Any) -> Iterator[Callable[..., Worker]]:
    """Starts workers, which end with the test."""
    workers = []

    def started(method: str = "spectrum", **limits: Any) -> Worker:
        workers.append(Worker([Engine(pipe, method, {})], Limits(**limits)))
        return workers[-1]

    yield started
    for worker in workers:
        worker.join()


def tasks(count: int, settings: Settings = CALL, seconds: float = WAIT) -> list[Task]:
    return [Task(Item(prompt=PROMPTS[i], seed=i), settings, time.monotonic() + seconds) for i in range(count)]


def pixels(task: Task) -> np.ndarray[Any, Any]:
    image = task.result.result(WAIT).image
    assert image is not None
    return np.asarray(image)


def generated(worker: Worker, batch: list[Task]) -> list[np.ndarray[Any, Any]]:
    worker.submit(batch)
    return [pixels(task) for task in batch]


def direct(pipe: Any, index: int, **call: Any) -> np.ndarray[Any, Any]:
    from spectrum_diffusion import enable

    with enable(pipe):
        generator = torch.Generator().manual_seed(index)
        return np.asarray(pipe(PROMPTS[index], num_inference_steps=12, generator=generator, **call).images[0])


def test_one_image_is_that_of_the_pipeline_bit_for_bit(pipe: Any, start: Any) -> None:
    (image,) = generated(start(), tasks(1))
    np.testing.assert_array_equal(image, direct(pipe, 0))


def test_images_that_share_a_call_are_those_of_single_calls_but_for_rounding(pipe: Any, start: Any) -> None:
    batch = tasks(4)
    for index, image in enumerate(generated(start(batch=4), batch)):
        assert batch[index].batch == 4
        assert np.abs(image.astype(int) - direct(pipe, index)).max() <= 1  # of 255


def test_without_shared_calls_images_are_equal_bit_for_bit(pipe: Any, start: Any) -> None:
    batch = tasks(3)
    for index, image in enumerate(generated(start(batch=1), batch)):
        assert batch[index].batch == 1
        np.testing.assert_array_equal(image, direct(pipe, index))


def test_a_method_that_decides_from_the_content_shares_no_call(start: Any) -> None:
    batch = tasks(2)
    generated(start("teacache", batch=4), batch)
    assert [task.batch for task in batch] == [1, 1]


def test_only_images_with_the_same_settings_share_a_call(start: Any) -> None:
    worker = start(batch=4)
    others = tasks(2, Settings(steps=12, speedup=2.0))
    own = tasks(2)
    mixed = [own[0], others[0], own[1], others[1]]
    generated(worker, mixed)
    assert [task.batch for task in mixed] == [2, 2, 2, 2]
    assert own[0].result.result().summary.nfe != others[0].result.result().summary.nfe


def test_the_untouched_quality_evaluates_every_step_of_an_adaptive_method_too(pipe: Any, start: Any) -> None:
    (task,) = batch = tasks(1, Settings(steps=12, speedup=UNTOUCHED))
    (image,) = generated(start("teacache"), batch)
    assert task.result.result().summary.nfe == 12
    wanted = pipe(PROMPTS[0], num_inference_steps=12, generator=torch.Generator().manual_seed(0)).images[0]
    np.testing.assert_array_equal(image, np.asarray(wanted))


@pytest.mark.parametrize(
    ("part", "call", "kind"),
    [
        ("transformer", 3, "exception"),
        ("transformer", 3, "nan"),
        ("text_encoder", 1, "exception"),
        ("vae.decoder", 1, "exception"),
    ],
)
def test_a_generation_that_fails_leaves_the_next_bit_equal(
    start: Any, hooked: Any, part: str, call: int, kind: str
) -> None:
    worker, calls, is_broken = start(), [0], [False]

    def fail(module: Any, inputs: Any, output: Any) -> Any:
        calls[0] += 1
        if not is_broken[0] or calls[0] < call:
            return output
        if kind == "exception":
            raise RuntimeError("the accelerator is gone")
        return tuple(tensor * float("nan") for tensor in output)

    hooked(fail, part)
    (before,) = generated(worker, tasks(1))
    calls[0], is_broken[0] = 0, True
    (broken,) = batch = tasks(1)
    worker.submit(batch)
    with pytest.raises(GenerationError, match="the accelerator is gone" if kind == "exception" else "not finite"):
        broken.result.result(WAIT)
    is_broken[0] = False
    (after,) = generated(worker, tasks(1))
    np.testing.assert_array_equal(before, after)


def test_an_image_that_fails_does_not_spoil_those_that_share_its_call(pipe: Any, start: Any, hooked: Any) -> None:
    def spoil_the_second(module: Any, inputs: Any, output: Any) -> Any:
        if output[0].shape[0] == 1:
            return output
        spoiled = output[0].clone()
        spoiled[1] = float("nan")
        return (spoiled,)

    hooked(spoil_the_second)
    batch = tasks(3)
    start(batch=3).submit(batch)
    for index in (0, 2):
        assert np.abs(pixels(batch[index]).astype(int) - direct(pipe, index)).max() <= 1
    with pytest.raises(GenerationError, match="not finite"):
        batch[1].result.result(WAIT)


def test_a_call_that_fails_with_several_images_is_made_with_each_alone(pipe: Any, start: Any, hooked: Any) -> None:
    def refuse_batches(module: Any, inputs: Any, output: Any) -> None:
        if output[0].shape[0] > 1:
            raise torch.OutOfMemoryError("out of memory")

    hooked(refuse_batches)
    batch = tasks(3)
    for index, image in enumerate(generated(start(batch=3), batch)):
        np.testing.assert_array_equal(image, direct(pipe, index))


def test_a_generation_past_its_deadline_ends_at_a_step(start: Any, hooked: Any) -> None:
    worker, calls = start(), [0]

    def slow(module: Any, inputs: Any, output: Any) -> None:
        calls[0] += 1
        time.sleep(0.1)

    hooked(slow)
    (task,) = batch = tasks(1, Settings(steps=100, speedup=UNTOUCHED), seconds=0.5)
    worker.submit(batch)
    with pytest.raises(DeadlineError):
        task.result.result(WAIT)
    generated(worker, tasks(1, Settings(steps=2)))
    assert calls[0] < 12  # of 100


def test_a_generation_that_nobody_waits_for_ends(start: Any, hooked: Any) -> None:
    worker, calls, begun = start(), [0], threading.Event()

    def count(module: Any, inputs: Any, output: Any) -> None:
        calls[0] += 1
        begun.set()
        time.sleep(0.05)

    hooked(count)
    (task,) = batch = tasks(1, Settings(steps=100, speedup=UNTOUCHED))
    worker.submit(batch)
    assert begun.wait(WAIT)
    task.result.cancel()
    generated(worker, tasks(1, Settings(steps=2)))
    assert calls[0] < 20  # of 100


def test_a_full_queue_takes_all_images_of_a_request_or_none(start: Any) -> None:
    worker = start(batch=1, queue=4)
    slow = Settings(steps=50, speedup=UNTOUCHED)
    first = tasks(1, slow)
    worker.submit(first)
    while worker.waiting:
        time.sleep(0.01)
    worker.submit(second := tasks(3, slow))
    with pytest.raises(QueueFullError, match="3 images wait, and the queue holds 4") as caught:
        worker.submit(tasks(2, slow))
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert worker.waiting == 3
    worker.submit(third := tasks(1, slow))
    for task in (*first, *second, *third):
        task.result.cancel()


def test_closing_finishes_what_is_queued(start: Any) -> None:
    worker = start()
    worker.submit(batch := tasks(3))
    worker.close(grace=WAIT)
    with pytest.raises(ShuttingDownError):
        worker.submit(tasks(1))
    assert all(pixels(task).shape == (64, 64, 3) for task in batch)


def test_the_end_of_the_grace_time_ends_what_is_left(start: Any) -> None:
    worker = start(batch=1)
    worker.submit(batch := tasks(3, Settings(steps=100, speedup=UNTOUCHED)))
    worker.close(grace=0.2)
    for task in batch:
        with pytest.raises(ShuttingDownError, match="send the request again"):
            task.result.result(WAIT)


class Mortal(Engine):
    """An engine whose process dies at some of its calls, as an actor does."""

    def __init__(self, pipe: Any, *deaths: int) -> None:
        super().__init__(pipe, "spectrum", {})
        self.deaths, self.calls, self.restored = deaths, 0, 0

    def generate(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls in self.deaths:
            raise LostError("its process died")
        return super().generate(*arguments)

    def restore(self, is_over: Callable[[], bool]) -> bool:
        self.restored += 1
        return True


def test_images_whose_engine_died_are_made_alone_and_before_all_others(pipe: Any) -> None:
    engine = Mortal(pipe, 1)
    worker = Worker([engine], Limits(batch=4))
    try:
        images = generated(worker, batch := tasks(3))
        for index, image in enumerate(images):
            np.testing.assert_array_equal(image, direct(pipe, index))
        assert [task.batch for task in batch] == [1, 1, 1]
        assert (engine.calls, engine.restored, worker.ready) == (4, 1, 1)
    finally:
        worker.join()


def test_an_image_that_ends_two_engines_is_refused_and_the_others_are_made(pipe: Any) -> None:
    worker = Worker([Mortal(pipe, 1, 2)], Limits(batch=4))
    try:
        worker.submit(batch := tasks(3))
        with pytest.raises(GenerationError, match=r"2 replicas died .*its process died") as caught:
            batch[0].result.result(WAIT)
        assert (caught.value.status, caught.value.code) == (500, "replica_lost")
        images = [pixels(task) for task in batch[1:]]
        for index, image in enumerate(images, 1):
            np.testing.assert_array_equal(image, direct(pipe, index))
    finally:
        worker.join()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"images": 0}, "images=0 lets no request through"),
        ({"seconds": 0.0}, "seconds=0 lets"),
        ({"speedup": float("nan")}, "speedup=nan"),
        ({"images": 9, "queue": 8}, "never fits a queue of 8"),
    ],
)
def test_limits_that_let_nothing_through_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        Limits(**limits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(size=(60, 64)), "size=60x64 does not fit .*: pass 64x64"),
        (Settings(steps=3, speedup=4.0), "speedup"),
        (Settings(negative=True), "negative_prompt has no effect .* pass true_cfg_scale above 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_they_are_queued(
    pipe: Any, settings: Settings, message: str
) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        Engine(pipe, "spectrum", {}).abilities.check(settings)


def test_negative_prompts_reach_the_pipeline(pipe: Any, start: Any) -> None:
    settings = Settings(steps=12, true_guidance=3.0, negative=True)
    batch = [
        Task(Item(prompt=PROMPTS[i], seed=i, negative_prompt="blue"), settings, time.monotonic() + WAIT)
        for i in range(2)
    ]
    for index, image in enumerate(generated(start(), batch)):
        wanted = direct(pipe, index, true_cfg_scale=3.0, negative_prompt="blue")
        assert np.abs(image.astype(int) - wanted).max() <= 1


def test_an_adaptive_method_has_no_speedup_to_set(pipe: Any) -> None:
    abilities = Engine(pipe, "teacache", {}).abilities
    with pytest.raises(InvalidOptionError, match="speedup=2 cannot be set, since teacache decides at run time"):
        abilities.check(Settings(speedup=2.0))


@pytest.mark.parametrize(("steps", "limit"), [(50, 5.0), (12, 5.0), (3, 5.0), (1, 5.0), (50, 100.0), (None, 5.0)])
def test_the_fastest_speedup_is_one_that_the_steps_allow(pipe: Any, steps: int | None, limit: float) -> None:
    abilities = Engine(pipe, "spectrum", {}).abilities
    speedup = abilities.fastest(limit, steps)
    assert 1 <= speedup <= limit
    abilities.check(Settings(steps=steps, speedup=speedup))
    if speedup < limit:
        total = steps or 50
        with pytest.raises(InvalidOptionError):
            abilities.check(Settings(steps=steps, speedup=total / (total / speedup - 0.9)))


def test_an_adaptive_method_has_no_fastest_speedup(pipe: Any) -> None:
    abilities = Engine(pipe, "teacache", {}).abilities
    with pytest.raises(InvalidOptionError, match="decides at run time"):
        abilities.check(Settings(speedup=abilities.fastest(5.0, 12)))


def test_a_speedup_replaces_the_evaluated_steps_of_the_server(pipe: Any) -> None:
    abilities = Engine(pipe, "taylor", {"evaluated": [0, 1, 2, 5, 8], "order": 2}).abilities
    assert abilities.method(2.0).options()["speedup"] == 2.0
    assert abilities.method(2.0).options()["order"] == 2
    assert list(abilities.method(None).options()["evaluated"]) == [0, 1, 2, 5, 8]


def test_a_pipeline_of_videos_is_refused() -> None:
    from pipelines import PIPELINES

    name = next(name for name in PIPELINES if name.startswith("wan"))
    with pytest.raises(UnsupportedModelError, match="serve a text-to-image pipeline"):
        Engine(PIPELINES[name].build(), "spectrum", {})
