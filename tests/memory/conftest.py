"""Fixtures of the tests of memory."""

from tests.support.memory import serve, stored

__all__ = ["serve", "stored"]
