"""What the operator sees: logs, and the id that ties them to a request."""
