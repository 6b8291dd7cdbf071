"""Helpers of the tests: clients, stand-ins for upstream servers, processes, databases."""
