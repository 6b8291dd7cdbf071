"""Probes of what the service depends on, and their report."""
