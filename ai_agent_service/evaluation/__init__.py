"""Tells whether an agent got better or worse: datasets, runs of them, scores, and what may be said
of a difference."""
