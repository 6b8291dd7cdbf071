"""API keys: their format, hashing, storage and verification."""
