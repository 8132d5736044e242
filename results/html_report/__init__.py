"""One HTML file with every run."""
