"""Parts of the check that measure the speed of the device and of training steps."""
