"""Health: probes of what the service depends on, and the report of them."""
