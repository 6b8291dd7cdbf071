"""Read the addresses of model servers in the forms in which portals and manuals show them."""

import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

_OPENAI_HOST = re.compile(r"(^|\.)api\.openai\.com$")
_AZURE_HOST = re.compile(
    r"\.((openai|cognitiveservices|services\.ai)\.azure\.(com|us|cn)"
    r"|api\.cognitive\.(microsoft\.com|microsoft\.us|azure\.cn))$"
)

_DEFAULT_PATHS = (
    (_OPENAI_HOST, "/v1"),
    (re.compile(r"(^|\.)openrouter\.ai$"), "/api/v1"),
    (_AZURE_HOST, "/openai/v1"),
)
"""The path of the API on hosts whose root serves none."""

_CHAT_ENDPOINT = re.compile(
    r"/(chat/completions|completions|responses)$"
    r"|(^|(?<=/v\d)|(?<=/v\d\d)|(?<=/v1beta)|(?<=/openai))/(chat|models|embeddings)$"
)
"""The end of an address of one operation. `/models` can also be part of a base address, so it
counts only after a version or as the whole path."""

_AZURE_API = re.compile(
    r"^(?P<base>.*?)/(openai(?P<path>(/(v1|deployments|responses|models|chat|completions)\b.*)?)"
    r"|models(/chat/completions)?|api/projects/[^/]+(/openai/v1)?(/.*)?)$"
)
_OLLAMA_ENDPOINT = re.compile(
    r"(/(api|v1))(/(chat(/completions)?|completions|responses|generate|tags|models|embed"
    r"|embeddings|version))?$"
)
_VERSION = re.compile(r"/v\d+[a-z0-9]*(/|$)")


class AzureEndpoint(msgspec.Struct, frozen=True):
    """The parts of an address of Azure OpenAI: the resource, and the deployment and the API
    version where the address names them."""

    base_url: str
    deployment: str | None = None
    api_version: str | None = None


def is_openai(url: str) -> bool:
    """Return whether `url` is OpenAI itself, in any region."""
    return bool(_OPENAI_HOST.search(_find_host(url)))


def is_azure(url: str) -> bool:
    """Return whether the host of `url` is a resource of Azure OpenAI."""
    return bool(_AZURE_HOST.search(_find_host(url)))


def build_address_hint(variable: str, base_url: str | None) -> str:
    """Return what to do if a server does not have the address of `variable`; empty if it is not
    set."""
    if not base_url:
        return ""
    has_version = _VERSION.search(urlsplit(base_url).path)
    return f"Check {variable}{'' if has_version else ': it usually ends with /v1'}."


def join_path(base_url: str, path: str) -> str:
    """Return `base_url` with `path` appended before its query."""
    base, mark, query = base_url.partition("?")
    return f"{base.rstrip('/')}{path}{mark}{query}"


def normalize_base_url(url: str) -> str:
    """Return the base address of an OpenAI-compatible API, from the address of it or of one of its
    operations.

    A query is kept, since gateways use it. Raises ValueError for Azure's addresses with the name of
    a deployment, which need Azure's header for the key.
    """
    parts = _split(url)
    path = parts.path
    if is_azure(url) and (found := parse_azure_endpoint(url)).deployment:
        raise ValueError(
            f"the address of the Azure deployment {found.deployment!r} belongs into"
            " AZURE_OPENAI_ENDPOINT, for the provider azure_openai"
        )
    path = _CHAT_ENDPOINT.sub("", path)
    if not path or (path == "/openai" and is_azure(url)):
        host = _find_host(url)
        path = next((path for sign, path in _DEFAULT_PATHS if sign.search(host)), "")
    return parts._replace(path=path).geturl()


def parse_azure_endpoint(url: str) -> AzureEndpoint:
    """Return the parts of an endpoint or a Target URI of Azure OpenAI.

    The version in an address of the model inference API (`/models/...`) belongs to another API, so
    it is ignored: the same resource serves `/openai/v1`.
    """
    parts = _split(url)
    query = parse_qs(parts.query)
    version = query.get("api-version", [None])[0]
    match = _AZURE_API.match(parts.path)
    base = match["base"] if match else _CHAT_ENDPOINT.sub("", parts.path)
    path = (match["path"] if match else None) or ""
    deployment = re.match(r"/deployments/([^/]+)", path)
    return AzureEndpoint(
        parts._replace(path=base, query="").geturl(),
        unquote(deployment[1]) if deployment else None,
        version if path else None,
    )


def normalize_ollama_url(url: str) -> str:
    """Return the address of an Ollama server, from the address of it or of one of its
    operations."""
    parts = _split(url)
    return parts._replace(path=_OLLAMA_ENDPOINT.sub("", parts.path)).geturl()


def _split(url: str) -> SplitResult:
    """Return the parts of `url` without a fragment and needless slashes."""
    parts = urlsplit(url.strip())
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    return parts._replace(path=path, fragment="")


def _find_host(url: str) -> str:
    try:
        return (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:
        return ""
