"""An S3 server on loopback (moto's), which fails as it is told."""

from __future__ import annotations

import socket
import threading
import urllib.request
from typing import Any, Self

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "fleet-key",
    "AWS_SECRET_ACCESS_KEY": "fleet-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """Serves in a thread of this process for as long as the `with` block runs."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        #: what a request is answered with, other than what it asks for
        self.status: str | None = None
        #: which requests are refused: those whose path holds this
        self.only = ""
        #: requests wait for it; closed, the server is as slow as can be
        self.gate = threading.Event()
        self.gate.set()
        self.num_held = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        # moto keeps what it stores by the process, whichever server asked
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=60).close()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        if self.only in environ["PATH_INFO"]:
            self.num_held += 1
            self.gate.wait(60.0)
            if self.status is not None:
                start_response(self.status, [("Content-Length", "0")])
                return [b""]
        return self._app(environ, start_response)


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])
