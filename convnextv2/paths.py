"""What a function takes for a path: text, a `pathlib.Path`, or whatever else names a file."""

import os

PathLike = str | os.PathLike[str]
