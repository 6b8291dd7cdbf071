"""Identifiers, unique and unguessable."""

import secrets


def generate_id(prefix: str) -> str:
    """`prefix` and 24 hexadecimal digits (96 random bits), such as `chatcmpl-0f3a...`."""
    return f"{prefix}{secrets.token_hex(12)}"
