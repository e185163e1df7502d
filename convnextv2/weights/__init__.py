"""Weight files: every checkpoint dialect, both ways.

read, inspect: any dialect and container, under our names; nothing in a file is ever run.
convert, write: for the official code, timm and Hugging Face.
load: into a model, strictly.
"""

from convnextv2.weights.dialects import convert
from convnextv2.weights.geometry import Geometry, geometry_of, why_no_decoder
from convnextv2.weights.inspection import Inspection, inspect, inspect_contents, read
from convnextv2.weights.loading import load
from convnextv2.weights.metadata import UNKNOWN, Evaluation, Metadata
from convnextv2.weights.state import State, WeightsError, encoder_of
from convnextv2.weights.writing import write

__all__ = [
    "UNKNOWN",
    "Evaluation",
    "Geometry",
    "Inspection",
    "Metadata",
    "State",
    "WeightsError",
    "convert",
    "encoder_of",
    "geometry_of",
    "inspect",
    "inspect_contents",
    "load",
    "read",
    "why_no_decoder",
    "write",
]
