"""Folders of .beton shards: their manifest, reading, verification and copies on a node."""
