"""The papers' numbers: their tables as CSV files, and as rows and columns of ours."""
