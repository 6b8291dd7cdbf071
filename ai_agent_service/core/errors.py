"""All errors of the service, in one tree; each class carries the HTTP status and OpenAI's type and
code.

    ServiceError
    |-- ConfigError                        409  the operator: all faults in the configuration
    |-- RequestError                       400  the caller
    |   |-- InvalidRequestError            400
    |   |   `-- ContextTooLongError        400  the conversation does not fit the model
    |   |-- UnauthorizedError              401  the key is missing or not valid
    |   |   `-- InvalidTokenError          401  the user behind the key is not verified
    |   |-- InsufficientScopeError         403  the key does not have the scope
    |   |-- HostNotAllowedError            403  the Host header is not a name of this service
    |   |-- CrossSiteRequestError          403  the request comes from a web page of another site
    |   |-- NotFoundError                  404
    |   |-- SessionBusyError               409  another turn of this session is in progress
    |   |-- IdempotencyInFlightError       409  the first request with this Idempotency-Key is, too
    |   |-- IdempotencyNotStoredError      409  its answer was too large to store
    |   |-- BodyTooLargeError              413
    |   |-- IdempotencyMismatchError       422  this Idempotency-Key was used for another request
    |   |-- ServerBusyError                429  MAX_CONCURRENT_REQUESTS runs are in progress
    |   |-- TooManyConnectionsError        429  MAX_CONNECTIONS_PER_ADDRESS are open
    |   |-- RateLimitError                 429  the limit of the key or of its user is used up
    |   `-- HeadersTooLargeError           431
    |-- RunTimeoutError                    504  the run's deadline has passed
    |-- ShuttingDownError                  503  the service stops before the run ends
    |-- MemoryUnavailableError             503  the database of conversations cannot be used
    |-- AccessUnavailableError             503  keys or users cannot be checked now
    |-- AuditUnavailableError              503  the audit log cannot be written now
    |-- UpstreamError                      502  the provider
    |   |-- ProviderNotConfiguredError     424  a credential is missing
    |   |-- ProviderRefusedError           424  it does not accept our key, model or account
    |   |-- ProviderRateLimitError         429
    |   |-- ProviderUnavailableError       502  no connection, or a failure inside it
    |   |   `-- ProviderCircuitOpenError   503  it failed so often that it is not asked for a time
    |   |-- ProviderTimeoutError           504
    |   `-- ProviderProtocolError          502  its answer breaks its own protocol
    `-- InternalError                      500  a bug of the service

424 (Failed Dependency) is for errors of the provider that only the operator can correct: no client
retries it, as clients do with 5xx, and none takes it for an error in its own key or request.

`ToolError` is separate: the model can repair it, so it becomes a tool result and never an answer.
"""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from ai_agent_service.core.text import replace_unstorable

NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}
"""The header that keeps OpenAI's libraries from retrying an answer, whatever its status is."""


class UpstreamAnswer(msgspec.Struct, frozen=True):
    """What a provider's error says: the HTTP status, its own code, and its message."""

    status: int
    code: str = ""
    message: str = ""


class ServiceError(Exception):
    """An error with a message for the reader of the answer: it names no internals and no secret.

    Subclasses state their status, type and code in their class line; what they leave out is their
    parent's.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    headers: Mapping[str, str] = {}
    """Headers of the answer."""

    def __init_subclass__(
        cls, *, status: int | None = None, type: str | None = None, code: str | None = None
    ) -> None:
        super().__init_subclass__()
        cls.status = status or cls.status
        cls.type = type or cls.type
        cls.default_code = code or cls.default_code

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = replace_unstorable(message)
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after
        """Seconds after which a retry may succeed, where that is known."""
        self.upstream: UpstreamAnswer | None = None
        """What the provider said, for an error that it sent."""


class InternalError(ServiceError):
    """A bug of the service; the log has the traceback under the request's id."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One thing wrong in the operator's configuration: where it is, what is wrong, what to do."""

    file: str = ""
    where: str = ""
    field: str = ""
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.where, self.field) if part)
        return f"{place}: {self.problem}. {self.remedy}"

    @classmethod
    def in_environment(cls, variable: str, problem: str, remedy: str) -> "Fault":
        """The fault of an environment variable."""
        return cls(file="environment", field=variable, problem=problem, remedy=remedy)


class ConfigError(
    ServiceError, status=409, type="invalid_request_error", code="configuration_error"
):
    """All faults found in the configuration; a process that starts ends with code 2, a running one
    keeps its configuration."""

    headers = NO_RETRY

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class RequestError(ServiceError, status=400, type="invalid_request_error", code="invalid_request"):
    """The request cannot be carried out as it was sent."""


class InvalidRequestError(RequestError):
    """The request is not well formed; `param` names the field."""


class ContextTooLongError(InvalidRequestError, code="context_length_exceeded"):
    """The provider says that the conversation does not fit the model's context window."""

    def __init__(
        self, message: str, *, param: str | None = None, window: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.window = window
        """The context window in tokens, where the provider states it."""


class UnauthorizedError(RequestError, status=401, code="invalid_api_key"):
    """The request has no key, or one that is malformed, unknown, expired or revoked; the answer
    does not say which."""

    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}

    def __init__(
        self,
        message: str = (
            "A valid API key is needed: send it as 'Authorization: Bearer KEY' or as 'x-api-key'."
        ),
    ) -> None:
        super().__init__(message)


class InvalidTokenError(UnauthorizedError, code="invalid_token"):
    """The request does not name its user in the way that IDENTITY_MODE asks for, or the user cannot
    be verified."""


class InsufficientScopeError(
    RequestError, status=403, type="permission_error", code="insufficient_scope"
):
    """The key is valid and does not have the scope for this."""


class HostNotAllowedError(RequestError, status=403, code="host_not_allowed"):
    """The Host header is not a name of this service, as with a web page that points its own name
    here."""


class NotFoundError(RequestError, status=404, code="not_found"):
    """The route, the agent or the object does not exist."""


class CrossSiteRequestError(RequestError, status=403, code="cross_site_request"):
    """The browser says that a page of another site sends this request, maybe without its user's
    knowledge."""


class BodyTooLargeError(RequestError, status=413, code="request_too_large"):
    """The request's body exceeds MAX_REQUEST_BYTES."""


class SessionBusyError(RequestError, status=409, code="session_busy"):
    """Another turn of the session is in progress, here or on another replica."""


class IdempotencyInFlightError(RequestError, status=409, code="idempotency_in_flight"):
    """The first request with this Idempotency-Key is still being answered."""


class IdempotencyNotStoredError(RequestError, status=409, code="idempotency_not_kept"):
    """The request with this Idempotency-Key was answered, and the answer is too large to be
    repeated."""

    headers = NO_RETRY


class IdempotencyMismatchError(RequestError, status=422, code="idempotency_mismatch"):
    """Another request was sent with this Idempotency-Key."""


class HeadersTooLargeError(RequestError, status=431, code="headers_too_large"):
    """The request line and the headers exceed the limit in size or number."""


class ServerBusyError(RequestError, status=429, type="rate_limit_error", code="server_busy"):
    """As many runs as allowed are in progress."""


class TooManyConnectionsError(
    RequestError, status=429, type="rate_limit_error", code="too_many_connections"
):
    """The caller's address has as many connections as it may have."""


class RateLimitError(RequestError, status=429, type="rate_limit_error", code="rate_limit_exceeded"):
    """The key, or the user behind it, has used up its requests or tokens of the minute, or has as
    many runs in progress as it may have."""

    def __init__(self, message: str, *, retry_after: float, headers: Mapping[str, str]) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers


class RunTimeoutError(ServiceError, status=504, type="timeout_error", code="run_timeout"):
    """The run did not end within REQUEST_TIMEOUT."""

    def __init__(
        self, message: str = "The run took longer than REQUEST_TIMEOUT allows and was stopped."
    ) -> None:
        super().__init__(message)


class ShuttingDownError(ServiceError, status=503, code="shutting_down"):
    """The service is stopping, and SHUTDOWN_TIMEOUT has passed."""


class MemoryUnavailableError(ServiceError, status=503, code="memory_unavailable"):
    """The database of conversations cannot be reached or used now; the log says why."""


class AccessUnavailableError(ServiceError, status=503, code="access_unavailable"):
    """The database of keys or the identity provider cannot be asked now."""


class AuditUnavailableError(ServiceError, status=503, code="audit_unavailable"):
    """The audit log cannot be written now, and AUDIT_REQUIRED is set; the log says why."""


class UpstreamError(ServiceError, status=502, type="upstream_error", code="provider_error"):
    """The provider could not be asked, or answered with an error."""


class ProviderNotConfiguredError(UpstreamError, status=424, code="provider_not_configured"):
    """A setting that the provider needs is missing; the message names the variable."""

    headers = NO_RETRY


class ProviderRefusedError(UpstreamError, status=424, code="provider_refused"):
    """The provider does not accept our key, our account or the model's name: the operator has to
    act."""

    headers = NO_RETRY

    def __init__(self, message: str, *, code: str | None = None, detail: str = "") -> None:
        super().__init__(message, code=code)
        self.detail = detail or message
        """The message for the operator, with the provider's own words."""


class ProviderRateLimitError(
    UpstreamError, status=429, type="rate_limit_error", code="provider_rate_limited"
):
    """The provider says that we ask too much."""


class ProviderUnavailableError(UpstreamError, code="provider_unavailable"):
    """The provider cannot be reached or reports a failure inside it."""


class ProviderCircuitOpenError(ProviderUnavailableError, status=503, code="provider_circuit_open"):
    """The provider failed PROVIDER_BREAKER_FAILURES times in a row, so it is not asked for
    PROVIDER_BREAKER_SECONDS."""


class ProviderTimeoutError(UpstreamError, status=504, code="provider_timeout"):
    """The provider did not connect, answer or continue its answer in time."""


class ProviderProtocolError(UpstreamError, code="provider_protocol_error"):
    """The provider's answer breaks off or cannot be understood."""


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong, in words that help it to do better."""


class ToolTimeoutError(ToolError):
    """The tool did not answer in time."""
