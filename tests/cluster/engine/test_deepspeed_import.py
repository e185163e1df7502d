"""DeepSpeed is imported without what training does not need, and everything else stays as it is."""

import subprocess
import sys

import pytest

TRAIN = """
import os, sys
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
import torch
decorator = torch.compile
from cluster.engine.deepspeed_import import import_deepspeed
import_deepspeed()
assert torch.compile is decorator
prepared = set(sys.modules)
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import ZeroSettings
from tests.cluster.engine import toy
meeting = "file://" + sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
for stage in (0, 1, 2):
    settings = EngineSettings(zero=ZeroSettings.model_validate({"stage": stage}), precision="fp32")
    toy.go_on(toy.new_engine(settings), 0, 2)
late = {name for name in set(sys.modules) - prepared if name.startswith(("deepspeed.", "torch."))}
print(sorted(late))
print([name for name in ("torch._dynamo", "mlflow") if name in sys.modules])
import mlflow, torch._dynamo
print(mlflow.__name__)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_training_imports_no_compiler_and_no_mlflow(tmp_path: object) -> None:
    words = [sys.executable, "-W", "ignore", "-c", TRAIN, f"{tmp_path}/meeting"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    late, unwanted, mlflow = done.stdout.splitlines()[-3:]
    assert len(late.split(",")) < 5, late
    assert (unwanted, mlflow) == ("[]", "mlflow")
