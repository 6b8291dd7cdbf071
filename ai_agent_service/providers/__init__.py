"""Providers of models: one small file for each vendor, one for each wire format."""
