"""What becomes of damaged sound files, odd records, hostile checkpoints, broken archives and killed processes."""
