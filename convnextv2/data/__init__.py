"""From an image collection to batches: sources, .beton files, order, views, loading."""

import numba.typed
import torch

# FFCV keeps a numba dictionary of two words that only Python reads; compiling it costs every
# process seconds at import. A plain one does. Its import also sets PyTorch's threads to one.
_Dict, numba.typed.Dict = numba.typed.Dict, dict
_threads = torch.get_num_threads()
try:
    import ffcv  # noqa: F401
finally:
    numba.typed.Dict = _Dict
    torch.set_num_threads(_threads)
