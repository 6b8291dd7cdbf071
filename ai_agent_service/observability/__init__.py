"""Logs, audit lines, metrics and traces for the operator."""
