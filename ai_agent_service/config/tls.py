"""Checks the certificate and the key that HTTPS is served with."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import Fault

_CERT, _KEY = "TLS_CERT_FILE", "TLS_KEY_FILE"


def check_tls(settings: Settings) -> list[Fault]:
    """What keeps HTTPS from being served; nothing is wrong where neither file is set."""
    cert, key = settings.tls_cert_file, settings.tls_key_file
    if cert is None and key is None:
        return []
    if cert is None or key is None:
        given, missing = (_KEY, _CERT) if cert is None else (_CERT, _KEY)
        return [
            Fault.in_environment(
                missing, f"it has to be set where {given} is", f"Set it, or unset {given} for HTTP"
            )
        ]
    found = []
    for field, path in ((_CERT, cert), (_KEY, key)):
        problem = _check_readable(path) or (
            _check_certificate(path) if field == _CERT else _check_key(path)
        )
        if problem:
            remedy = (
                "Store it without: openssl pkey -in FILE -out NEW"
                if "its password" in problem
                else "Name a file in PEM"
            )
            found.append(Fault.in_environment(field, problem, remedy))
    if not found:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
        except ssl.SSLError as error:
            fits = "MISMATCH" not in (error.reason or "")
            problem = (
                f"OpenSSL does not take it ({error.reason})"
                if fits
                else f"it is not the key of the first certificate in {cert}"
            )
            found.append(
                Fault.in_environment(_KEY, problem, f"Name the key that {_CERT} was made with")
            )
    return found


def collect_tls_warnings(settings: Settings) -> list[str]:
    """What callers will find wrong with a certificate that can be served with; to be asked where
    there are no faults."""
    if settings.tls_cert_file is None:
        return []
    # loaded only where there is a certificate, for it takes time
    from cryptography import x509  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificates(settings.tls_cert_file.read_bytes())[0]
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        return [
            f"{_CERT}: the certificate expired at {certificate.not_valid_after_utc.isoformat()};"
            " callers will refuse it."
        ]
    if certificate.not_valid_before_utc > now:
        return [
            f"{_CERT}: the certificate is valid from {certificate.not_valid_before_utc.isoformat()}"
            " only; callers will refuse it."
        ]
    return []


def _check_readable(path: Path) -> str | None:
    try:
        path.read_bytes()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def _check_certificate(path: Path) -> str | None:
    from cryptography import x509  # noqa: PLC0415 - as above

    try:
        x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        return f"{path} is not a certificate in PEM"
    return None


def _check_key(path: Path) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        load_pem_private_key(path.read_bytes(), None)
    except TypeError:
        return f"{path} is encrypted, and nobody is there to type its password"
    except (ValueError, UnsupportedAlgorithm):
        return f"{path} is not a private key in PEM"
    return None
