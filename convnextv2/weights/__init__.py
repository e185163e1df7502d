"""Weight files of every dialect: reading, converting and writing.

read, inspect: read any dialect and container under our names, without running code in a file.
convert, write: make weights of the official code, timm and Hugging Face.
load: load a state into a model, strictly.
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
