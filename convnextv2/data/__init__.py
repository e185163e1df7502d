"""From an image collection to batches: sources, .beton files, order, views, loading."""
