"""What the service costs, beside the naive hop that anyone would write."""
