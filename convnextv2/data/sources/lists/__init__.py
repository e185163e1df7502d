"""Lists of images and their labels: how they are read, what their columns mean, and the source."""

from convnextv2.data.sources.lists.rows import LIST_SUFFIXES
from convnextv2.data.sources.lists.source import ListSource, find_metadata, open_list

__all__ = ["LIST_SUFFIXES", "ListSource", "find_metadata", "open_list"]
