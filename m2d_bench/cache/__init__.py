"""The cache folder: what lies in it, and what of it may go."""
