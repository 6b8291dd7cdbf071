"""OpenTelemetry spans for requests, runs, models, tools and memory."""
