"""All errors of the service, in one tree; each class carries the HTTP status and OpenAI's type and
code.

    ServiceError
    |-- ConfigError               the operator: every fault found in what they wrote; 409 to one who
    had the service reload it
    |-- RequestError              the caller
    |   |-- InvalidRequestError            400
    |   |   `-- ContextTooLongError        400  the conversation does not fit the model
    |   |-- Unauthorized              401  no key, or none that is of use
    |   |   `-- InvalidTokenError          401  the user behind the key is not told as they must be
    |   |-- InsufficientScopeError         403  the key is not for this
    |   |-- CrossSiteRequestError          403  a web page of another site asks
    |   |-- HostNotAllowedError            403  asked under a name that is not this service's
    |   |-- NotFoundError                  404
    |   |-- SessionBusyError               409  another turn of this session is under way
    |   |-- IdempotencyInFlightError       409  the request with this Idempotency-Key is being
    answered
    |   |-- IdempotencyNotStoredError        409  it was answered, and the answer was not kept
    |   |-- BodyTooLargeError              413
    |   |-- IdempotencyMismatchError       422  this Idempotency-Key was used for another request
    |   |-- HeadersTooLargeError           431
    |   |-- ServerBusyError                429  MAX_CONCURRENT_REQUESTS runs are under way
    |   `-- RateLimitError               429  the key, or its user, has used up what it may ask
    |-- RunTimeoutError                504  the run's deadline has passed
    |-- ShuttingDownError           503  the service ends before the run does
    |-- MemoryUnavailableError         503  the database of conversations cannot be used
    |-- AccessUnavailableError         503  it cannot be told now who calls
    |-- UpstreamError             the provider
    |   |-- ProviderNotConfiguredError     503  a credential is missing
    |   |-- ProviderRefusedError           502  it does not accept our key, model or account
    |   |-- ProviderRateLimitError       429
    |   |-- ProviderUnavailableError       502  no connection, or an error of its own
    |   |   `-- ProviderCircuitOpenError       503  it failed so often that it is not asked for a
    time
    |   |-- ProviderTimeoutError           504
    |   `-- ProviderProtocolError     502  an answer that breaks its own protocol
    `-- InternalError             500  a fault of ours

`ToolError` stands apart: the model can repair it, so it becomes a tool result and never an answer.
"""

from collections.abc import Mapping
from typing import ClassVar

import msgspec


class ServiceError(Exception):
    """An error with a message fit for whoever reads it: it names no internals and no secret."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    headers: Mapping[str, str] = {}
    """What its answer tells besides, by the names of headers."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after
        """Seconds after which a retry may succeed, where that is known."""


class InternalError(ServiceError):
    """A fault of ours; the log has the traceback under the request's id."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One thing wrong in the operator's configuration: where it is, what is wrong, what to do."""

    file: str
    where: str = ""
    field: str = ""
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.where, self.field) if part)
        return f"{place}: {self.problem}. {self.remedy}"


class ConfigError(ServiceError):
    """All faults found in the configuration; a process that starts ends with code 2, one that runs
    goes on as it was."""

    status = 409
    type = "invalid_request_error"
    default_code = "configuration_error"

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class RequestError(ServiceError):
    """The caller asked for something that cannot be done as asked."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class InvalidRequestError(RequestError):
    """The request is not well formed; `param` names the field."""


class ContextTooLongError(InvalidRequestError):
    """The provider says that the conversation does not fit the model's context window."""

    default_code = "context_length_exceeded"


class UnauthorizedError(RequestError):
    """The request brings no key, or one that is malformed, unknown, expired or revoked; nothing
    tells which."""

    status = 401
    default_code = "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}

    def __init__(
        self,
        message: str = (
            "A valid API key is needed: send it as 'Authorization: Bearer KEY' or as 'x-api-key'."
        ),
    ) -> None:
        super().__init__(message)


class InvalidTokenError(UnauthorizedError):
    """The request does not tell its user in the way that IDENTITY_MODE asks for, or not in a way
    that can be verified."""

    default_code = "invalid_token"


class InsufficientScopeError(RequestError):
    """The key is valid and not for this."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class HostNotAllowedError(RequestError):
    """The request names a host that is not this service, as a web page does that made its own name
    lead here."""

    status = 403
    default_code = "host_not_allowed"


class NotFoundError(RequestError):
    """There is no such route, agent or thing."""

    status = 404
    default_code = "not_found"


class CrossSiteRequestError(RequestError):
    """A browser says that a page of another site sends this, which may be against its user's
    will."""

    status = 403
    default_code = "cross_site_request"


class BodyTooLargeError(RequestError):
    """The request's body exceeds MAX_REQUEST_BYTES."""

    status = 413
    default_code = "request_too_large"


class SessionBusyError(RequestError):
    """Another turn of the session is under way, here or on another replica."""

    status = 409
    default_code = "session_busy"


class IdempotencyInFlightError(RequestError):
    """The first request with this Idempotency-Key is still being answered."""

    status = 409
    default_code = "idempotency_in_flight"


class IdempotencyNotStoredError(RequestError):
    """The request with this Idempotency-Key was answered, and its answer is too large to be told
    again."""

    status = 409
    default_code = "idempotency_not_kept"


class IdempotencyMismatchError(RequestError):
    """Another request was sent with this Idempotency-Key."""

    status = 422
    default_code = "idempotency_mismatch"


class HeadersTooLargeError(RequestError):
    """The request line and the headers are larger, or more, than is taken."""

    status = 431
    default_code = "headers_too_large"


class ServerBusyError(RequestError):
    """As many runs as allowed are under way."""

    status = 429
    type = "rate_limit_error"
    default_code = "server_busy"


class RateLimitError(RequestError):
    """The key, or the user behind it, has used up its requests or tokens of the minute, or has as
    many runs under way as it may have."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float, headers: Mapping[str, str]) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers


class RunTimeoutError(ServiceError):
    """The run did not end within REQUEST_TIMEOUT."""

    status = 504
    type = "timeout_error"
    default_code = "run_timeout"


class ShuttingDownError(ServiceError):
    """The service was told to stop, and SHUTDOWN_TIMEOUT has passed."""

    status = 503
    default_code = "shutting_down"


class MemoryUnavailableError(ServiceError):
    """The database that keeps conversations cannot be reached or used now; the log says why."""

    status = 503
    default_code = "memory_unavailable"


class AccessUnavailableError(ServiceError):
    """What tells who calls - the database of keys, the identity provider - cannot be asked now."""

    status = 503
    default_code = "access_unavailable"


class UpstreamError(ServiceError):
    """The provider could not be asked, or answered with an error."""

    status = 502
    type = "upstream_error"
    default_code = "provider_error"


class ProviderNotConfiguredError(UpstreamError):
    """A setting that the provider needs is missing; the message names the variable."""

    status = 503
    default_code = "provider_not_configured"


class ProviderRefusedError(UpstreamError):
    """The provider does not accept our key, our account or the model's name: the operator has to
    act."""

    default_code = "provider_refused"


class ProviderRateLimitError(UpstreamError):
    """The provider says that we ask too much."""

    status = 429
    type = "rate_limit_error"
    default_code = "provider_rate_limited"


class ProviderUnavailableError(UpstreamError):
    """The provider cannot be reached or reports a failure of its own."""

    default_code = "provider_unavailable"


class ProviderCircuitOpenError(ProviderUnavailableError):
    """The provider failed PROVIDER_BREAKER_FAILURES times in a row, so it is not asked for
    PROVIDER_BREAKER_SECONDS."""

    status = 503
    default_code = "provider_circuit_open"


class ProviderTimeoutError(UpstreamError):
    """The provider did not connect, begin or go on in time."""

    status = 504
    default_code = "provider_timeout"


class ProviderProtocolError(UpstreamError):
    """The provider's answer breaks off or cannot be understood."""

    default_code = "provider_protocol_error"


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong, in words that help it to do better."""


class ToolTimeoutError(ToolError):
    """The tool did not answer in time."""
