"""Checkpoints: a step is on disk whole or not at all, and any number of workers reads it."""
