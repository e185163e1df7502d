"""DeepSpeed's insides: those that are used are listed, and a missing one is said by name."""

import ast
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.engine import partition, zero_partitions
from cluster.engine.deepspeed_insides import INSIDES, TESTED_VERSIONS, check_insides

# The optimizer is called so in those two files, a parameter of stage 3 and of stages 1 and 2 so.
OPTIMIZER = {"optimizer", "self._optimizer"}
CLASSES = {
    "Zero0Partition": "FP16_UnfusedOptimizer",
    "Zero12Partition": "DeepSpeedZeroOptimizer",
    "Zero3Partition": "DeepSpeedZeroOptimizer_Stage3",
}


def used_of_the_optimizer(source: str) -> set[str]:
    """Attributes that the source reads, sets or asks for with getattr."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in OPTIMIZER:
            used.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            owner, name = node.args[:2]
            if ast.unparse(owner) in OPTIMIZER and isinstance(name, ast.Constant):
                used.add(str(name.value))
    return used


@pytest.mark.parametrize(("ours", "theirs"), CLASSES.items())
def test_all_that_is_used_is_listed(ours: str, theirs: str) -> None:
    used = used_of_the_optimizer(inspect.getsource(getattr(zero_partitions, ours)))
    used |= used_of_the_optimizer(inspect.getsource(partition.Partition))
    assert used == set(INSIDES[theirs].optimizer)


def made(name: str, paths: tuple[str, ...]) -> Any:
    """An object of a class of that name with attributes at those paths."""
    root = type(name, (SimpleNamespace,), {})()
    for path in paths:
        owner = root
        for attribute in path.split("."):
            if not hasattr(owner, attribute):
                setattr(owner, attribute, SimpleNamespace())
            owner = getattr(owner, attribute)
    return root


@pytest.mark.parametrize("name", INSIDES)
def test_an_optimizer_with_all_of_it_passes(name: str) -> None:
    optimizer, parameter = (made(name, paths) for paths in INSIDES[name])
    assert check_insides(optimizer, [parameter]) == name
    assert check_insides(optimizer, []) == name


def test_a_parameter_that_lies_elsewhere_has_no_address_here() -> None:
    name = "DeepSpeedZeroOptimizer"
    check_insides(made(name, INSIDES[name].optimizer), [SimpleNamespace(_hp_mapping=None)])


def test_a_missing_attribute_of_a_parameter_is_said_with_the_versions() -> None:
    name = "DeepSpeedZeroOptimizer_Stage3"
    parameter = made("Parameter", ("ds_numel", "ds_shape", "ds_tensor"))
    with pytest.raises(RuntimeError) as error:
        check_insides(made(name, INSIDES[name].optimizer), [parameter] * 2)
    assert "has no parameter.ds_tensor.ds_numel; convnextv2 reads" in str(error.value)
    assert f"tested with {' or '.join(TESTED_VERSIONS)}: pip install" in str(error.value)


def test_an_optimizer_of_another_name_is_said() -> None:
    with pytest.raises(RuntimeError, match="trains with ZeroOptimizer4, not with one of Layerwise"):
        check_insides(made("ZeroOptimizer4", ()), [])
