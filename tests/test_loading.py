"""Names, folders and ids of models: what cannot be loaded gives one message that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spectrum_diffusion import load_pipeline
from spectrum_diffusion.bench.reproduce import MODELS
from spectrum_diffusion.cli import app
from spectrum_diffusion.errors import InvalidOptionError
from spectrum_diffusion.loading import named_models

ANSWERS = {
    "missing": (404, "RepoNotFound", "does not exist on the Hub, or is private: check its id"),
    "gated": (403, "GatedRepo", "is gated: accept its licence on huggingface.co/someone/gated"),
    "down": (503, "", "and the Hub cannot be reached: connect to the network once"),
}


class Hub(BaseHTTPRequestHandler):
    """A Hub whose models all fail, each as its name says."""

    def do_GET(self) -> None:
        status, code, _ = next(answer for name, answer in ANSWERS.items() if name in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (the server looks for this name)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def spectrum(folder: Path, endpoint: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, since the address of the Hub is read once."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    place = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-m", "spectrum_diffusion", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **place, "no_proxy": "127.0.0.1", **environment},
        timeout=240,
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_a_model_that_the_hub_refuses_is_one_message(name: str, hub: str, tmp_path: Path) -> None:
    done = spectrum(tmp_path, hub, "generate", "apple", "-o", "a.png", "--model", f"someone/{name}", "--device", "cpu")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"Error: the model 'someone/{name}' ")
    assert ANSWERS[name][2] in done.stderr


def test_offline_each_model_of_a_table_is_one_message(tmp_path: Path) -> None:
    arguments = ["reproduce", "table1", "table5", "--model", "real", "-o", "out", "--device", "cpu"]
    done = spectrum(tmp_path, "http://127.0.0.1:9", *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith(f"table1, table5 did not run on {MODELS['flux'].real}: the model ")
    assert done.stdout.strip() == f"written: {Path('out', 'results.md')}"


def test_a_name_that_no_model_has_lists_the_models() -> None:
    with pytest.raises(InvalidOptionError) as raised:
        load_pipeline("tiny-fluxx")
    assert "'tiny-fluxx' is neither a folder nor a small model that is here (did you mean 'tiny-flux'?)" in str(
        raised.value
    )
    assert ", ".join(sorted(named_models())) in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a/b/c", "does not exist"),
        ("./model", "does not exist"),
        ("", "does not exist"),
        ("folder", "holds no model_index.json"),
        ("file", "is a file"),
    ],
)
def test_what_is_no_model_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOptionError, match=message):
        load_pipeline(source)
    result = CliRunner().invoke(app, ["generate", "apple", "-o", "a.png", "--model", source, "--device", "cpu"])
    assert result.exit_code == 2
    assert f"--model {source!r}" in result.stderr


def test_a_path_is_no_id_on_the_hub() -> None:
    with pytest.raises(InvalidOptionError, match="does not exist"):
        load_pipeline(Path("someone/model"))
