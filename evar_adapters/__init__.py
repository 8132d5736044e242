"""EVAR representation classes and files over the core's encoders. Nothing is here yet."""
