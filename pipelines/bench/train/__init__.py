"""`make bench-train`: what the engine costs, how it scales, what a checkpoint and a model take."""
