"""From an image collection to batches: sources, .beton shards, order, views, loading."""
