"""What operators ask: health, metrics, reload, documentation."""
