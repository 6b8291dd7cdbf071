"""AI Agent Service: agents that appear as models."""

__version__ = "0.1.0"
