"""ai-agent-service reload: has the running service read its files anew."""

import urllib.error
import urllib.request
from typing import Any

import click
import msgspec

from ai_agent_service.cli.conventions import exit_with_faults
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.json_files import load_environment
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.runtime.revision import Changes

API_KEY_VARIABLE = "AAS_API_KEY"
TIMEOUT_SECONDS = 120.0
_CHANGE_LABELS = {
    "added_agents": "added the agent",
    "changed_agents": "changed the agent",
    "removed_agents": "removed the agent",
    "added_servers": "added the MCP server",
    "changed_servers": "changed the MCP server",
    "removed_servers": "removed the MCP server",
}


class _ErrorDetail(msgspec.Struct):
    message: str
    code: str | None


class _ErrorResponse(msgspec.Struct):
    error: _ErrorDetail


class _NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    """A key goes to the address that was meant, and to no other."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follows nothing; what was answered is the error then."""


@click.command()
@click.option(
    "--url",
    help=(
        "Where the service is, such as https://agents.example.org; by default where HOST and PORT"
        " say."
    ),
)
def reload(url: str | None) -> None:
    """Have the running service read agents, prompts and MCP servers anew. Of several workers it
    reaches one: send those SIGHUP.

    AAS_API_KEY, in the environment or in .env, is the key, which needs the scope admin.
    """
    url = (url or _build_url(load_settings())).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise click.UsageError("--url is an address beginning with http:// or https://.")
    status, body = _post_reload(url, load_environment().get(API_KEY_VARIABLE))
    if status == 200:
        changes = _decode_body(body, Changes, url)
        lists = msgspec.structs.asdict(changes)
        for field, words in _CHANGE_LABELS.items():
            for name in lists[field]:
                version = f" ({changes.agents[name]})" if name in changes.agents else ""
                echo(f"{words} {name}{version}")
        if not changes:
            echo("Nothing has changed.")
        return
    error = _decode_body(body, _ErrorResponse, url).error
    if error.code != "configuration_error":
        hint = (
            f" The key is taken from {API_KEY_VARIABLE}; it needs the scope admin."
            if status in (401, 403)
            else ""
        )
        raise click.ClickException(f"{url} answered {status}: {error.message}{hint}")
    exit_with_faults(error.message.splitlines(), ", and the service goes on as it was")


def _build_url(settings: Settings) -> str:
    # asked, not bound
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    scheme = "https" if settings.tls_cert_file else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _post_reload(url: str, key: str | None) -> tuple[int, bytes]:
    """The status and the body of the service's answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # checked above
    request = urllib.request.Request(  # noqa: S310
        f"{url}/admin/reload", data=b"", headers=headers, method="POST"
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirectHandler)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise click.ClickException(
            f"{url} cannot be reached: {reason}. Is the service running there? --url names another"
            " address."
        ) from None


def _decode_body(body: bytes, kind: type[Any], url: str) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise click.ClickException(f"what answers at {url} is not this service") from None
