"""Pre-training of the Masked Modeling Duo family. Nothing is here yet."""
