"""The client side of MCP: connections to servers, whose tools become tools of agents."""
