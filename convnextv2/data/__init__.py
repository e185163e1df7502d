"""From an image collection to batches: sources, .beton shards, order, views, loading."""

from convnextv2 import require

require("data", needed_by="convnextv2.data")
