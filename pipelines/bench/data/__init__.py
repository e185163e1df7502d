"""`make bench-data`: our loader compared to others on the same photographs.

Nothing heavy is imported here, because the import time of libraries is measured, too.
"""

CROP, BATCH, WORKERS = 224, 64, 2
SCALE = (0.2, 1.0)
"""Bounds of the share of an image's area that a random crop covers."""
