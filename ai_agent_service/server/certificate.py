"""Serve with a renewed TLS certificate, without a restart."""

import asyncio
import logging
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Between two looks at the files; both must say the same in two of them to be loaded."""


async def watch_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Have `context` use the certificate and the key that the files hold, for new connections,
    whenever they change. A pair that cannot be used is reported once, and the old one stays."""
    loaded = before = await asyncio.to_thread(_read_files, cert, key)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        found = await asyncio.to_thread(_read_files, cert, key)
        if found is not None and found == before and found != loaded:
            loaded = found
            try:
                await asyncio.to_thread(_load_pair, context, found)
            except (OSError, ssl.SSLError) as error:
                logger.error(  # noqa: TRY400 - the reason says all
                    "tls.not_renewed", extra={"file": str(cert), "reason": str(error)}
                )
            else:
                logger.info("tls.renewed", extra={"file": str(cert)})
        before = found


def _read_files(cert: Path, key: Path) -> tuple[bytes, bytes] | None:
    """Return what both files hold; None while one of them cannot be read."""
    try:
        return cert.read_bytes(), key.read_bytes()
    except OSError:
        return None


def _load_pair(context: ssl.SSLContext, pair: tuple[bytes, bytes]) -> None:
    """Load a pair into `context`; it is tried elsewhere first, since a failure would leave the new
    certificate with the old key."""
    with TemporaryDirectory(prefix="ai-agent-service-tls-") as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        cert.write_bytes(pair[0])
        key.write_bytes(pair[1])  # only this user may enter the folder
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            each.load_cert_chain(cert, key, password=lambda: "")
