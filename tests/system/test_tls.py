"""HTTPS by the service itself: one process and several, streamed answers, refusals."""

import json
import signal
import socket
import ssl
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.certificates import certified
from tests.support.processes import serving
from tests.support.raw_http import read_refusal


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


def fetched(url: str, trusted: ssl.SSLContext, body: dict[str, Any] | None = None) -> bytes:
    """What `url` answers, asked until all processes are up."""
    deadline = time.monotonic() + 20
    content = json.dumps(body).encode() if body else None
    while True:
        try:
            with urllib.request.urlopen(url, content, timeout=10, context=trusted) as response:
                answer: bytes = response.read()
                return answer
        except OSError:
            assert time.monotonic() < deadline


def connected(url: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return context.wrap_socket(
        socket.create_connection((parts.hostname, parts.port or 0), timeout=10),
        server_hostname=parts.hostname,
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_service_speaks_https(tmp_path: Path, workers: str) -> None:
    cert, key = certified(tmp_path)
    trusted = trusting(cert)
    with serving(
        tmp_path, "--workers", workers, TLS_CERT_FILE=str(cert), TLS_KEY_FILE=str(key)
    ) as (url, process):
        assert url.startswith("https://127.0.0.1:")
        assert json.loads(fetched(f"{url}/health", trusted))["status"] == "healthy"
        answer = fetched(
            f"{url}/agents/cli_agent/chat", trusted, {"message": "What is 6*7?", "stream": True}
        )
        assert answer.endswith(b"data: [DONE]\n\n")
        assert b"42" in answer
        with connected(url, trusted) as client:
            assert client.version() in ("TLSv1.2", "TLSv1.3")
            client.sendall(b"GET /health HTTP/1.1\r\na: " + b"x" * 100_000)
            received = b""
            while not received.endswith(b"}}"):
                received += client.recv(65536)
        assert read_refusal(received, 431)["code"] == "headers_too_large"
        old = trusting(cert)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError):
            connected(url, old)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
