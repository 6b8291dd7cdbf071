"""Ends with 0 when the service in this container is ready, else with 1 and the reason: what
HEALTHCHECK runs, as the image has no curl."""

import http.client
import os
import ssl
import sys

SECONDS = 4
ALL = {"", "0.0.0.0", "::"}  # noqa: S104 - these are asked by the loopback address

given = os.environ.get("HOST", "")
host = "127.0.0.1" if given in ALL else given
port = int(os.environ.get("PORT") or 8000)
connection: http.client.HTTPConnection
if os.environ.get("TLS_CERT_FILE"):
    # The certificate is for the name that callers use, and what is asked is this container itself.
    connection = http.client.HTTPSConnection(
        # as above
        host,
        port,
        timeout=SECONDS,
        context=ssl._create_unverified_context(),  # noqa: S323
    )
else:
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
try:
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
    said = answer.read(500).decode(errors="replace")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"{host}:{port} does not answer: {error}")
sys.exit(0 if answer.status == 200 else f"{answer.status} {said}")
