"""`make bench-data`: our loader beside others on the same photographs, and what it costs.

Nothing heavy is imported here: the start-up of libraries is one of the things measured.
"""

CROP, BATCH, WORKERS = 224, 64, 2
SCALE = (0.2, 1.0)
"""Bounds of a random crop's share of the area."""
