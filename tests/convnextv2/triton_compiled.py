"""Compiles the Triton depthwise for NVIDIA processors, which needs none of them; prints JSON.

Arguments: compute capabilities, such as 80. A program of its own, because Triton must not be in
interpreter mode.
"""

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convnextv2.kernels import triton_programs

LAUNCH = {"SITES": 32, "CHANNELS": 64, "KERNEL": 7, "SIDE": 8}
GEOMETRY = dict.fromkeys(("total", "visible", "rows", "columns", "channels"), "i32")
WHERE = {"patches": "*i32", "slots": "*i32", **GEOMETRY}


def main(capabilities: list[int]) -> None:
    sizes = {}
    for capability in capabilities:
        for dtype in ("fp32", "bf16", "fp16", "fp64"):
            sums, wide = ("fp64", tl.float64) if dtype == "fp64" else ("fp32", tl.float32)
            tensor, constants = f"*{dtype}", {**LAUNCH, "SUM": wide}
            for bias in (True, False):
                sizes[f"convolve {dtype} bias={bias} sm_{capability}"] = size(
                    triton_programs.convolve,
                    {**dict.fromkeys(("x", "weight", "bias", "out"), tensor), **WHERE},
                    {**constants, "HAS_BIAS": bias},
                    capability,
                )
            sizes[f"weight_gradient {dtype} sm_{capability}"] = size(
                triton_programs.weight_gradient,
                {"x": tensor, "grad": tensor, "parts": f"*{sums}", **WHERE},
                {**constants, "GROUPS": 64},
                capability,
            )
    print(json.dumps(sizes))


def size(
    program: object, arguments: dict[str, str], constants: dict[str, object], capability: int
) -> int:
    """Bytes of machine code."""
    signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(program, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return len(made.asm["cubin"])


if __name__ == "__main__":
    main([int(capability) for capability in sys.argv[1:]])
