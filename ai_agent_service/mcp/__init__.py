"""MCP servers: kept connected, their tools as tools of agents."""
