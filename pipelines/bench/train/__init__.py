"""`make bench-train`: overhead and scaling of the engine, cost of checkpoints, memory of models."""
