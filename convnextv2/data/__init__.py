"""From an image collection to batches: sources, .beton files, order, views, loading."""

import numba.typed

# FFCV keeps a numba dictionary of two words that only Python reads; compiling it costs every
# process seconds at import. A plain one does.
_Dict, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv  # noqa: F401
finally:
    numba.typed.Dict = _Dict
