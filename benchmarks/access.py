"""Measures what it costs to tell who calls, in a process that does nothing else.

`python -m benchmarks.access --calls N [--with-keys]` prints microseconds of CPU a request, with a
key of the database and a user of Open WebUI's signed header, or where callers need no key.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import OctKey

from ai_agent_service.auth.keys.store import KeyStore
from ai_agent_service.auth.principal import Headers
from ai_agent_service.config.settings import load_settings
from ai_agent_service.memory.opening import open_memories
from ai_agent_service.runtime.configuration import load_configuration
from ai_agent_service.runtime.opening import open_access, open_service
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.storage.opening import build_cipher

SECRET = "a secret of Open WebUI's of 32 bytes or more"
ADDRESS = "127.0.0.1"
AGENT = (
    '[{"agent_id": "helper", "system_prompt": "You help.", "provider": "demo", "resources":'
    ' ["memory"]}]'
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.access")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--with-keys", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no .env is read
        Path("agent_config.json").write_text(AGENT, encoding="utf-8")
        print(asyncio.run(_microseconds(arguments.calls, with_keys=arguments.with_keys)))


async def _microseconds(calls: int, *, with_keys: bool) -> float:
    settings = load_settings(
        **{"identity_mode": "open_webui_jwt", "open_webui_jwt_secret": SECRET} if with_keys else {}
    )
    requests: list[Headers] = [
        [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")] for _ in range(calls)
    ]
    if with_keys:
        async with open_memories(settings, {}) as memories:
            made = await KeyStore(
                memories.database, pepper=None, cipher=build_cipher(settings)
            ).create("open-webui")
        requests = [
            [
                *headers,
                (b"authorization", f"Bearer {made.text}".encode()),
                (b"x-openwebui-user-jwt", _token(number)),
            ]
            for number, headers in enumerate(requests)
        ]
    configuration = load_configuration(settings, load_plugins()[0])
    async with (
        open_service(configuration) as service,
        open_access(configuration, service) as access,
    ):
        for headers in requests[: calls // 10]:
            await access.authenticate(headers, ADDRESS, identified=True)
        before = time.thread_time_ns()
        for headers in requests:
            await access.authenticate(headers, ADDRESS, identified=True)
        return (time.thread_time_ns() - before) / calls / 1e3


def _token(number: int) -> bytes:
    """As Open WebUI makes one for each request."""
    now = int(time.time())
    claims = {
        "sub": f"user-{number}",
        "email": f"{number}@example.org",
        "name": "A User",
        "role": "user",
        "iss": "open-webui",
    }
    return jwt.encode(
        {"alg": "HS256"}, {**claims, "iat": now, "exp": now + 300}, OctKey.import_key(SECRET)
    ).encode()


if __name__ == "__main__":
    main()
