"""The verb `dashboard`: the fleet as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.views.json_output import JsonOption, print_json_in_confidence
from workers.protocol.errors import FleetError, InvalidInputError
from workers.settings import Settings

dashboard_app = typer.Typer()


@dashboard_app.command()
def dashboard(
    host: Annotated[str, typer.Option("--host", help="The address to answer at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="0 for one that is free.", min=0, max=65535)
    ] = 0,
    token: Annotated[
        str,
        typer.Option(
            "--token",
            envvar="FLEET_DASHBOARD_TOKEN",
            help="What actions take, and reading, too; by default one is drawn.",
            show_envvar=True,
        ),
    ] = "",
    public_url: Annotated[
        str,
        typer.Option(
            "--public-url",
            help="Where people find it behind a proxy, such as https://fleet.example.",
        ),
    ] = "",
    certfile: Annotated[
        Path | None,
        typer.Option("--certfile", help="A certificate as PEM: the page speaks HTTPS itself."),
    ] = None,
    keyfile: Annotated[
        Path | None,
        typer.Option("--keyfile", help="The certificate's key, if that is in another file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the fleet, its studies and their trials as a web page, until Ctrl-C.

    The link that is printed holds the token with which the page reads, and acts: pause, resume,
    stop, cancel, enqueue, extend, retry. Reading takes no token on this host alone, and only where
    FLEET_REDIS_URL has no password and FLEET_SECRET is not set. Other hosts get in where --host
    says so, or through a proxy that --public-url names.

    Example: trialfleet dashboard --port 8000
    """
    try:
        from orchestrator.dashboard.door import Door, is_open_to_this_host
        from orchestrator.dashboard.server import Certificate, serve
    except ModuleNotFoundError as error:
        lacking = (error.name or "").partition(".")[0]
        raise FleetError(
            f"the page needs {lacking}, which is not installed: pip install 'trialfleet[dashboard]'"
        ) from error

    def tell(link: str) -> None:
        if as_json:
            print_json_in_confidence({"url": link})
        else:
            print(f"dashboard: {link}\nCtrl-C ends it; the fleet goes on", flush=True)

    if keyfile is not None and certfile is None:
        raise InvalidInputError(f"--keyfile {keyfile}: give the --certfile of it, too")
    certificate = None if certfile is None else Certificate(certfile, keyfile)
    settings = Settings.from_environment()
    door = Door(
        host, token, is_open_to_this_host(settings), public_url, has_tls=certificate is not None
    )
    serve(settings, door, port, tell, certificate)
