"""The agents API: what agents there are, a chat that shows the tools at work, and stored
conversations."""
