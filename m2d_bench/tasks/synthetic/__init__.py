"""The synthetic tasks: a generator of clips each, and the scene they are recorded in."""
