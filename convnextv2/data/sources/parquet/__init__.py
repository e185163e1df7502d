"""Hugging Face parquet files: where they lie, which columns are read, and what labels mean."""

from convnextv2.data.sources.parquet.columns import Columns
from convnextv2.data.sources.parquet.files import (
    BELOW,
    NEAR,
    ParquetFiles,
    find_parquet_files,
    open_parquet_files,
)

__all__ = ["BELOW", "NEAR", "Columns", "ParquetFiles", "find_parquet_files", "open_parquet_files"]
