"""EVAR: representation classes over the core's encoders, and its files in and out.

`representation` holds the classes, `clone` shows them to a clone of EVAR; `metadata` and `scores` are its files.
"""

MODULE = "ar_m2d_bench"
"""What a clone calls the module of our classes."""
