"""The command ``spectrum demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from ...demo import check_packages
from .. import pipelines
from ..app import app
from ..options import Device, Dtype, Model, Offload
from ..request import DEFAULT_MODEL, SamplingRequest


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address to serve. Others than this machine's own let anyone who reaches it generate.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
) -> None:
    """Show a page to try the library: images side by side, methods at equal cost, and the idea as a drawing."""
    check_packages()
    from ...demo.page import launch
    from ...demo.studio import Studio, image_models
    from ...serve.address import bind, is_loopback, web_address

    bind(host, port).close()  # a port in use is told before the model is loaded

    def load(name: str) -> object:
        request = SamplingRequest(prompts=(name,), model=name, device=device, dtype=dtype, offload=offload)
        return pipelines.load(request)

    studio = Studio(load, list(dict.fromkeys([model, *image_models()])))
    studio.pipe(model)  # refuses a wrong model before the page opens
    reach = "" if is_loopback(host) else ", and all who reach this machine may generate"
    typer.echo(f"the page is at {web_address(host, port)}{reach}", err=True)
    launch(studio, host, port, inbrowser=browser)
