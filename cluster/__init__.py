"""The machines: placing workers, sharded training, checkpoints, faults. Knows no model."""
