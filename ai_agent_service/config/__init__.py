"""What the operator writes: the environment, agent_config.json, mcp.json and prompts, checked whole
before anything starts."""
