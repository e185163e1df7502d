"""What workers read: which samples at which step, and how they become batches."""
