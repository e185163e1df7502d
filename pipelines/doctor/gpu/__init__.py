"""`make gpu-check`: checks a GPU machine and its speed; needs only PyTorch and Triton.

Nothing here imports Ray, DeepSpeed, FFCV, spconv, MLflow or pydantic at the top of a file, so that
the check runs on a bare GPU machine; every part reports what it misses there.
"""
