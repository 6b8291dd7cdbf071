"""Conversation memory: what the client sent against what is stored, and what the model is to see of
it."""
