"""`spectrum generate --ray local`: a real cluster of two actors, one of which is killed, or the driver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread

import pytest
from batches import PATIENCE, command, files, finish, prompt_file, start, until
from extras import needs
from rays import RAY, actors, children, has_ended

needs("ray.data", "pyarrow")

from spectrum_diffusion.cluster import Cluster, joined
from spectrum_diffusion.errors import InvalidOptionError
from spectrum_diffusion.loading import ASSETS, DEFAULT_MODEL

COUNT = 12


def test_two_actors_make_the_files_of_one_process(tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path, 4)
    report = finish(start(command(prompts, tmp_path / "ray", *RAY)))
    assert (report["generated"], report["missing"], report["workers"]) == (4, 0, 2)
    finish(start(command(prompts, tmp_path / "one")))
    ours, theirs = files(tmp_path / "ray"), files(tmp_path / "one")
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_a_killed_actor_costs_no_file_and_doubles_none(tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, COUNT), tmp_path / "out"
    process = start(command(prompts, out, *RAY))
    until(lambda: len(files(out)) >= 3, process)
    os.kill(actors(process.pid)[0], signal.SIGKILL)
    report = finish(process)
    assert report["missing"] == 0
    assert report["generated"] + report["existed"] == COUNT
    assert report["failures"] == {}
    assert len(files(out)) == COUNT


def test_a_killed_driver_leaves_whole_files_and_the_next_makes_the_rest(tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, COUNT), tmp_path / "out"
    process = start(command(prompts, out, *RAY))
    until(lambda: len(files(out)) >= 3, process)
    below = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: has_ended(below), process)
    kept = files(out)
    assert 3 <= len(kept) < COUNT
    report = finish(start(command(prompts, out, *RAY)))
    assert report["existed"] + report["generated"] == COUNT
    assert report["generated"] <= COUNT - len(kept)
    assert len(files(out)) == COUNT


def test_more_than_the_cluster_has_is_refused_at_once(tmp_path: Path) -> None:
    process = start(command(prompt_file(tmp_path, 4), tmp_path / "out", *RAY, "--actor-cpus", "1000"))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "2 actors with 1000 CPU each need more than the cluster's" in stderr


def test_an_address_without_a_cluster_is_a_message(tmp_path: Path) -> None:
    process = start(command(prompt_file(tmp_path, 4), tmp_path / "out", "--ray", "auto"))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--ray auto cannot be reached" in stderr


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_an_address_where_nobody_answers_is_a_message_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    with pytest.raises(
        InvalidOptionError, match=f"--ray {address} cannot be reached .*: give the address of a running"
    ):
        with joined(Cluster(address)):
            pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InvalidOptionError, match=f"--ray auto, RAY_ADDRESS={address} cannot be reached"):
        with joined(Cluster("auto")):
            pass
    assert time.monotonic() - begin < 60


class Page(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard does to what it does not know."""


@pytest.mark.parametrize("handler", [Page, BaseRequestHandler], ids=["a page", "a port that is closed at once"])
def test_an_address_where_something_else_answers_is_a_message_at_once(handler: type[BaseRequestHandler]) -> None:
    with TCPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(InvalidOptionError, match="what answers there is not a cluster, whose head usually listens"):
            with joined(Cluster(f"127.0.0.1:{server.server_address[1]}")):
                pass
        assert time.monotonic() - begin < 60
        server.shutdown()


def test_a_running_cluster_is_joined_by_its_address() -> None:
    import ray

    head = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False).address_info["address"]
    try:
        code = f"from spectrum_diffusion.cluster import *\nwith joined(Cluster({head!r})) as pool: print(pool.size)"
        joining = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert joining.stdout.split() == ["1"], joining.stderr
    finally:
        ray.shutdown()


def test_a_model_that_no_actor_can_load_is_a_message(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(ASSETS / DEFAULT_MODEL, broken)
    next((broken / "transformer").glob("*.safetensors")).unlink()
    process = start(command(prompt_file(tmp_path, 2), tmp_path / "out", *RAY, "--model", str(broken)))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"Error: the cluster gave up (--model '{broken}' can't be loaded" in stderr
