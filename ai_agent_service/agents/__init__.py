"""Agents: what one is, how it takes a turn, and the loop that all of them share."""
