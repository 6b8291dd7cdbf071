"""Fixtures of the tests of maintenance."""

from tests.support.memory import stored

__all__ = ["stored"]
