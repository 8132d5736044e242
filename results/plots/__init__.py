"""Figures of run records, of predictions and of embeddings."""
