"""Faults on purpose, and where the time went."""
