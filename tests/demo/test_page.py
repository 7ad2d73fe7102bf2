"""The page as a client of its API and a real browser see it: `spectrum demo` in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from extras import needs

needs("gradio", "gradio_client", "playwright")

from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, sync_playwright

SRC = str(Path(__file__).parents[2] / "src")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180.0
WISH = ("tiny-flux", "red apple", 12, 2.0, 1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"PYTHONPATH": SRC, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "spectrum_diffusion", "demo", "--port", str(port)]
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, env={**os.environ, **own}, stderr=stderr)
    try:
        yield _answering(f"http://127.0.0.1:{port}", process)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert "the prompt is empty" not in log.read_text(encoding="utf-8")  # mistakes are told on the page alone
    finally:
        process.kill()
        process.wait()


def _answering(url: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return url
        except OSError:
            time.sleep(0.3)
    raise AssertionError("spectrum demo does not answer")


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def test_two_images_and_measured_facts(client: Client) -> None:
    images, facts = client.predict(*WISH, api_name="/side_by_side")
    assert len(images) == 2
    assert "6 of 12 steps" in facts
    assert facts.count("s measured") == 2
    assert facts.count(": evaluated</title>") == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((1, ""), "the prompt is empty"),
        ((0, "/etc"), "choose a value|not in the list|not offered"),
        ((2, 5000), "out of range|maximum"),
    ],
)
def test_errors_are_plain_words_and_the_next_generation_works(
    client: Client, change: tuple[int, object], words: str
) -> None:
    wish = list(WISH)
    wish[change[0]] = change[1]  # type: ignore[call-overload]
    with pytest.raises((AppError, ValueError), match=words):
        client.predict(*wish, api_name="/side_by_side")
    assert len(client.predict(*WISH, api_name="/side_by_side")[0]) == 2


def test_readers_take_turns(client: Client) -> None:
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(client.predict, *WISH, api_name="/side_by_side") for _ in range(3)]
        assert all("6 of 12 steps" in job.result(timeout=PATIENCE)[1] for job in jobs)


@pytest.fixture(scope="module", params=[(1200, 1000), (390, 844)], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, url: str) -> Iterator[Page]:
    """The page in a browser, which fails if it asks another host or a script fails."""
    if BROWSER is None:
        pytest.skip("there is no Chromium: install the system's package chromium")
    width, height = request.param
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.set_default_timeout(1000 * PATIENCE)
        elsewhere: list[str] = []
        failed: list[str] = []
        opened.on(
            "request", lambda sent: None if sent.url.startswith((url, "data:", "blob:")) else elsewhere.append(sent.url)
        )
        opened.on("pageerror", lambda error: failed.append(str(error)))
        opened.goto(url)
        yield opened
        browser.close()
    assert not elsewhere
    assert not failed


def test_the_tabs_work_in_a_browser(page: Page) -> None:
    page.click("#generate")
    page.wait_for_selector("#facts svg")
    assert "dB to the untouched image" in page.inner_text("#facts")
    assert page.locator(".pixels img").count() >= 2
    page.get_by_role("tab", name="Methods").click()
    page.click("#compare")
    page.wait_for_selector(".thumbnail-lg img")
    assert page.locator(".thumbnail-lg").count() == 7
    for place in range(7):  # no caption hides its image
        image = page.locator(".thumbnail-lg img").nth(place).bounding_box()
        text = page.locator(".thumbnail-lg .caption-label").nth(place).bounding_box()
        assert image is not None
        assert text is not None
        assert text["y"] >= image["y"] + image["height"] - 1
        assert image["width"] >= 120
    page.get_by_role("tab", name="The idea").click()
    page.click("#record")
    page.wait_for_selector("#drawing circle")  # the page shows an svg of its own while it waits
    assert page.locator("#drawing circle").count() > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]


def test_a_wrong_prompt_is_explained_in_the_browser(page: Page) -> None:
    page.get_by_role("tab", name="Side by side").click()
    page.get_by_label("Prompt").fill("")
    page.click("#generate")
    page.wait_for_selector("text=write what the image should show")
    page.get_by_label("Prompt").fill("panda")
