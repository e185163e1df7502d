"""Parts of the check that say how fast the device and the training step are."""
