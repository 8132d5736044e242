"""Encoders: what gives embeddings, under one contract (`protocol`), by name (`zoo`)."""
