"""Routes for operators: health, metrics, reload, documentation."""
