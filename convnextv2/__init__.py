"""ConvNeXt V2 and FCMAE: the method, single-process maths and data (arXiv 2301.00808)."""

import os

PathLike = str | os.PathLike[str]
"""What a function takes for a path: text, a `pathlib.Path`, or whatever else names a file."""
