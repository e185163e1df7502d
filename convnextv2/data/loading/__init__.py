"""Batches from shards: what the network sees of each image, and the loader that serves them."""
