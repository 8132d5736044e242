"""Frozen embeddings and what is trained on them: probes, metrics, predictions."""
