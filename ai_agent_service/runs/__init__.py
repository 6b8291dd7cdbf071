"""A run: its slot, limits, memory, record and live readers."""
