"""The training loop that every worker runs, and what it is built from."""
