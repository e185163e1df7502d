"""`make gpu-check`: is this GPU machine right, and how fast is it; needs PyTorch and Triton alone.

Nothing here imports Ray, DeepSpeed, FFCV, spconv, MLflow or pydantic at the top of a file, so that
the check runs on a bare GPU machine; what is missing there is said, part by part.
"""
