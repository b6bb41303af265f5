"""Where runs can be stored behind a URL, for tests: a folder, and moto's S3 server where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

MISSING = [name for name in ("moto", "s3fs", "flask") if importlib.util.find_spec(name) is None]
needs_s3 = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install '.[dev]')")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server with one bucket, ``runs``; what finds it there is in the environment meanwhile."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/runs", method="PUT")).close()
        yield endpoint
        ask_for_keys(endpoint, float("inf"))  # moto remembers it from one server to the next
    server.stop()


def ask_for_keys(endpoint: str, after: float) -> None:
    """From so many requests on, the server lets in only keys that it knows, which are none."""
    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", str(after).encode(), {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request).close()
