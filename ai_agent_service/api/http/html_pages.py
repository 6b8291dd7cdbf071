"""Answer with HTML that no other page may embed."""

from starlette.responses import Response

_POLICY = ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")


def build_html_response(page: str, *allowed: str) -> Response:
    """Return `page`, which may load only what the directives `allowed` of its
    Content-Security-Policy permit."""
    policy = "; ".join((*_POLICY, *allowed))
    return Response(page, headers={"Content-Security-Policy": policy}, media_type="text/html")
