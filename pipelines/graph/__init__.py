"""Stages addressed by content: done means never again, half done means resume.

A stage lives in `stages/<name>/<key>/`. The key is a hash of the settings it declares, of its
inputs' digests and of the code it runs; the number of workers, the device and paths are not in it.
`COMPLETE.json`, written last, says that the stage is done and what its outputs are.
"""

from pipelines.graph.complete import COMPLETE, DamageError, Outputs, hash_files
from pipelines.graph.keys import code_digest, digest_of
from pipelines.graph.pipeline import Pipeline, Survey, needed_for
from pipelines.graph.stage import Stage, StageContext, StageResult

__all__ = [
    "COMPLETE",
    "DamageError",
    "Outputs",
    "Pipeline",
    "Stage",
    "StageContext",
    "StageResult",
    "Survey",
    "code_digest",
    "digest_of",
    "hash_files",
    "needed_for",
]
