"""The composition root: configuration in, a running service out."""
