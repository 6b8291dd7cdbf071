"""Tools that run here: what a tool is, how a function becomes one, how a call is carried out."""
