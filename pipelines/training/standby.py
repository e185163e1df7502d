"""Imported by workers before they are needed: all that a start would otherwise wait for.

A worker that stands by has DeepSpeed and the training loop in memory and the CPU kernels compiled
and loaded. It must not touch a GPU, nor join a group.
"""

import deepspeed

from convnextv2.kernels.build import library
from pipelines.training import loop

__all__ = ["deepspeed", "loop"]

library()
