"""WebDataset: tars in which an image stands beside its label, under the same key."""

from convnextv2.data.sources.webdataset.samples import has_label_beside
from convnextv2.data.sources.webdataset.shards import WebDataset, open_webdataset

__all__ = ["WebDataset", "has_label_beside", "open_webdataset"]
