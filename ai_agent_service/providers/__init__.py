"""Providers: each vendor's difference in a small file, each wire format written once."""
