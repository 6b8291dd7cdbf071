"""What all HTTP surfaces share: access, request bodies, errors, idempotency, and how a run is
sent."""
