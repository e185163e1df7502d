"""Recovery from faults, ours beside plain Ray Train with DeepSpeed (`make bench-faults`)."""
