"""The HTTP edge: wire formats to core types and back, without logic of its own."""
