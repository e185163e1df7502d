"""What this machine has and lacks for a run, and what to do about it."""
