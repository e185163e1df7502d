"""Compiles the Triton kernels for NVIDIA processors, which needs none of them; prints JSON lines.

Argument: a compute capability, such as 80. A program of its own, because Triton must not be in
interpreter mode. Machine code is read back with the disassembler that Triton brings along.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convnextv2.kernels.gpu import (
    depthwise_programs,
    grn_programs,
    norm_programs,
    weight_programs,
)

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)", re.MULTILINE)


@dataclass(frozen=True)
class Program:
    """A kernel for one geometry. `work`: what one thread has to do, by which code is measured."""

    name: str
    function: Any
    tensors: dict[str, str]
    constants: dict[str, Any]
    work: float
    numbers: tuple[str, ...] = ()
    warps: int = 1
    signature: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        arguments = {**self.tensors, **dict.fromkeys(self.numbers, "i32")}
        constants = dict.fromkeys(self.constants, "constexpr")
        object.__setattr__(self, "signature", {**arguments, **constants})


def convolve(
    dtype: str, c: int, side: int, tile: int, *, block: int, warps: int = 1, backward: bool = False
) -> Program:
    """Forward, or backward with the shortcut's gradient; work: multiplications of one thread."""
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    constants = _geometry(c, side, tile, block) | {"SKIP": tile > 1}
    way = "input gradient" if backward else "convolve"
    return Program(
        f"{way} {dtype} s={side} C={c}",
        depthwise_programs.convolve,
        {
            **dict.fromkeys(("x", "start", "out"), f"*{dtype}"),
            "weight": sums,
            "neighbours": "*i32",
        },
        constants | {"BACKWARD": backward, "SHORTCUT": backward},
        work=49 * tile**2 * block / (32 * warps),
        warps=warps,
    )


def weight_gradient(dtype: str, c: int, side: int, tile: int, *, block: int) -> Program:
    """Work: multiplications of one thread for a tile."""
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    return Program(
        f"weight gradient {dtype} s={side} C={c}",
        weight_programs.weight_gradient,
        {"x": f"*{dtype}", "grad": f"*{dtype}", "parts": sums, "neighbours": "*i32"},
        _geometry(c, side, tile, block),
        work=49 * tile**2 * block / 32,
        numbers=("tiles",),
    )


def grn(name: str, dtype: str, **more: Any) -> Program:
    """One pass of GELU + GRN over its widest tensor; work: elements of one thread."""
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    wide = dict.fromkeys(("x", "grad", "beta", "out", "grad_x"), f"*{dtype}")
    narrow = dict.fromkeys(("scale", "pull", "parts", "along", "plain"), sums)
    function = getattr(grn_programs, name)
    tensors = {n: t for n, t in {**wide, **narrow}.items() if n in function.arg_names}
    exact = {"EXACT": dtype in ("fp32", "fp64")}
    return Program(
        f"{name} {dtype}",
        function,
        tensors,
        {"C": 512, "ROWS": 32, "CHANNELS": 128, **exact, **more},
        work=32,
        numbers=tuple(n for n in ("rows", "splits") if n in function.arg_names),
        warps=4,
    )


def grn_of_groups(name: str, dtype: str) -> Program:
    """What GRN does between its passes, a program for each group; work: channels of one thread."""
    function = getattr(grn_programs, name)
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    return Program(
        f"grn {name} {dtype}",
        function,
        {
            n: f"*{dtype}" if n == "gamma" else sums
            for n in function.arg_names
            if n not in ("splits", "C", "EPS", "CHANNELS")
        },
        {"C": 512, "EPS": 1e-6, "CHANNELS": 512},
        work=4,
        numbers=("splits",),
        warps=4,
    )


def norm(name: str, dtype: str) -> Program:
    """LayerNorm; work: elements of one thread."""
    function = getattr(norm_programs, name)
    tensors = dict.fromkeys(("x", "weight", "bias", "out", "grad", "grad_x"), f"*{dtype}")
    tensors["parts"] = "*fp64" if dtype == "fp64" else "*fp32"
    constants = {"C": 40, "EPS": 1e-6, "ROWS": 32, "CHANNELS": 64}
    constants["SUM"] = tl.float64 if dtype == "fp64" else tl.float32
    return Program(
        f"{name} {dtype}",
        function,
        {n: t for n, t in tensors.items() if n in function.arg_names},
        constants,
        work=16,
        numbers=("rows",),
        warps=4,
    )


def _geometry(c: int, side: int, tile: int, block: int) -> dict[str, Any]:
    shape = {"HEIGHT": side, "WIDTH": side, "C": c, "TILE": tile, "KERNEL": 7, "AROUND": 7}
    return {**shape, "CHANNELS": block}


PROGRAMS = (
    convolve("bf16", 40, 8, 4, block=32),
    convolve("bf16", 512, 2, 2, block=64),
    convolve("bf16", 1024, 1, 1, block=64),
    *(convolve(dtype, 78, 1, 1, block=64) for dtype in ("fp32", "fp64")),
    convolve("bf16", 40, 8, 4, block=32, backward=True),
    weight_gradient("bf16", 40, 8, 4, block=32),
    weight_gradient("bf16", 512, 2, 2, block=64),
    weight_gradient("bf16", 1024, 1, 1, block=64),
    weight_gradient("fp32", 78, 1, 1, block=64),
    *(grn("square_sums", dtype) for dtype in ("bf16", "fp32")),
    grn("respond", "bf16"),
    grn("gradient_sums", "bf16", AGAIN=True),
    *(grn("input_gradient", dtype) for dtype in ("bf16", "fp32")),
    grn_of_groups("norms", "bf16"),
    grn_of_groups("norm_gradients", "bf16"),
    norm("normalise", "bf16"),
    norm("norm_gradients", "bf16"),
)


def main(capability: int) -> None:
    for program in PROGRAMS:
        print(json.dumps({"name": program.name, **code(program, capability)}), flush=True)


def code(program: Program, capability: int) -> dict[str, float]:
    """What the machine code costs: registers, bytes of spills, instructions per piece of work."""
    # Tensors of PyTorch begin at multiples of 16 bytes, which the compiler makes use of.
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(program.tensors))}
    made = triton.compile(
        ASTSource(program.function, _in_order(program), program.constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": program.warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        listing, usage = (_read_back(how, file.name) for how in ("-sass", "-res-usage"))
    counts = Counter(INSTRUCTION.findall(listing))
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spilled": int(re.findall(r"STACK:(\d+)", usage)[0]) + counts["LDL"] + counts["STL"],
        "instructions": round((sum(counts.values()) - counts["NOP"]) / program.work, 2),
    }


def _in_order(program: Program) -> dict[str, str]:
    return {name: program.signature[name] for name in program.function.arg_names}


def _read_back(how: str, file: str) -> str:
    return subprocess.run(
        [DISASSEMBLER, how, file], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main(int(sys.argv[1]))
