"""A certificate that is renewed while the service runs."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ai_agent_service.server import certificate
from tests.support.certificates import certified
from tests.support.events import until


@asynccontextmanager
async def watching(cert: Path, key: Path) -> AsyncGenerator[int, None]:
    """A server with the files, as they are watched; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=context)
    watch = asyncio.create_task(certificate.watch_certificate(context, cert, key))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        watch.cancel()
        await asyncio.wait((watch,))
        server.close()
        await server.wait_closed()


async def fetch_certificate(port: int) -> str:
    """The certificate that a new connection gets."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))


async def test_a_renewed_certificate_is_used_and_one_without_its_key_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate, "POLL_SECONDS", 0.02)
    caplog.set_level("INFO")
    cert, key = certified(tmp_path)
    (tmp_path / "new").mkdir()
    new_cert, new_key = certified(tmp_path / "new")
    async with watching(cert, key) as port:
        old = await fetch_certificate(port)
        assert old.split() == cert.read_text().split()
        cert.write_bytes(new_cert.read_bytes())
        await until(lambda: "tls.not_renewed" in caplog.text)
        assert await fetch_certificate(port) == old
        key.write_bytes(new_key.read_bytes())
        await until(lambda: "tls.renewed" in caplog.text)
        assert (await fetch_certificate(port)).split() == new_cert.read_text().split()
    assert caplog.text.count("tls.not_renewed") == 1
