"""From a source to verified .beton shards and their manifest: `write_collection`."""

from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.write import plan_collection, write_collection

__all__ = ["WriteSettings", "plan_collection", "write_collection"]
