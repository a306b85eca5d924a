"""The FLOPs of single HLO instructions: dots, convolutions, library calls, attention kernels."""

from __future__ import annotations

import math
import re

import numpy as np

from hybrid_jax.analysis.hlo import Computation, Instruction, Shape

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_DIM_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_COST_ESTIMATE = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')

# Library calls and markers that compute no matmul.
_NO_MATMUL = re.compile(
    r"AllocateBuffer|AssumeGatherIndicesInBound|AsyncCollective\w*|Sharding|SPMD\w+|TopK|"
    r"annotate_\w+|Move\w+|PadToStatic|SliceToDynamic|\w*sort\w*|\w*Sort\w*|ResizeBilinear|"
    r"__nop|.*callback.*|xla\.sdy\..*|.*[pP]rng.*|Eigh|.*Lock.*|.*barrier.*",
)

# Attention kernels by name: how many matmuls over the square of scores each of them does. The
# backward pass of FlashAttention (Dao et al. 2022) does five: scores, dv, dp, dq, dk. Splash
# attention splits it, so scores and dp come twice, unless `dkv` is fused with `dq`.
_ATTENTION = (
    (re.compile(r"splash_m[hq]a_fwd"), 2),
    (re.compile(r"splash_m[hq]a_dkv"), 4),
    (re.compile(r"splash_m[hq]a_dq"), 3),
    (re.compile(r"__cudnn\$fmha\w*Backward"), 5),
    (re.compile(r"__cudnn\$fmha"), 2),
)


def plain_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a dot or a convolution, two for a multiplication and its addition; 0 for the rest.

    XLA:TPU writes matmuls as convolutions, batched ones with windows.
    """
    if instruction.opcode in ("dot", "ragged-dot", "scaled-dot"):
        (lhs, *_), contracted = _operands(computation, instruction), _CONTRACTED
        found = contracted.search(instruction.attributes)
        return _dot(instruction.shapes[0], lhs, found[1] if found else "")
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    return 0.0


def kernel_flops(computation: Computation, instruction: Instruction) -> tuple[float, bool] | None:
    """FLOPs of a custom call, and whether only operand shapes gave them; None if nothing does.

    Taken from the cost estimate of a Pallas kernel, the dot that a cuBLAS call stands for, the
    operands of an attention kernel that is known by its name.
    """
    if found := _COST_ESTIMATE.search(instruction.attributes):
        return float(found[1]), False
    target = _target(instruction)
    operands = _operands(computation, instruction)
    if found := _GEMM_CONTRACTED.search(instruction.attributes):
        return _dot(instruction.shapes[0], operands[0], found[1].replace('"', "")), False
    name = f"{instruction.op_name} {target}"
    for pattern, count in _ATTENTION:
        if pattern.search(name):
            return count * _scores(operands, heads_first=not target.startswith("__cudnn")), True
    return (0.0, False) if _NO_MATMUL.fullmatch(target) else None


def kernel_name(instruction: Instruction) -> str:
    """A name for a custom call: of the Pallas kernel, else of the library's function."""
    target = _target(instruction)
    return re.sub(r"[.\d]+$", "", instruction.name) if target == "tpu_custom_call" else target


def _target(instruction: Instruction) -> str:
    found = _TARGET.search(instruction.attributes)
    return found[1] if found else instruction.name


def _operands(computation: Computation, instruction: Instruction) -> list[Shape]:
    return [
        shape for name in instruction.operands for shape in computation.instructions[name].shapes
    ]


def _dot(out: Shape, lhs: Shape, contracted: str) -> float:
    dims = [int(dim) for dim in contracted.split(",") if dim]
    return 2.0 * math.prod(out.dims) * math.prod(lhs.dims[dim] for dim in dims)


def _scores(operands: list[Shape], *, heads_first: bool) -> float:
    """FLOPs of one matmul over the scores: 2 B N T S H, of q [B, N, T, H] or [B, T, N, H]."""
    floats = [s for s in operands if s.dtype in ("bf16", "f16", "f32") and len(s.dims) >= 3]
    q, k = floats[0], floats[1]
    return 2.0 * math.prod(q.dims) * k.dims[-2 if heads_first else -3]


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """Multiplications with padding are none; see `HloCostAnalysis::HandleConvolution` of XLA."""
    labels = _DIM_LABELS.search(instruction.attributes)
    assert labels, f"convolution without dim_labels: {instruction.name}"
    lhs, kernel = _operands(computation, instruction)[:2]
    out = instruction.shapes[0]
    dims = {
        "lhs": dict(zip(labels[1], lhs.dims, strict=True)),
        "kernel": dict(zip(labels[2], kernel.dims, strict=True)),
        "out": dict(zip(labels[3], out.dims, strict=True)),
    }
    found = _WINDOW.search(instruction.attributes)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}
    taps = 1
    for spatial in (label for label in labels[3] if label.isdigit()):
        window = {name: value.split("x")[int(spatial)] for name, value in fields.items()}
        taps *= _taps(dims["out"][spatial], dims["lhs"][spatial], window)
    return 2.0 * dims["out"]["b"] * dims["out"]["f"] * dims["kernel"]["i"] * taps


def _taps(out_size: int, in_size: int, window: dict[str, str]) -> int:
    """How many (output, window) positions of one spatial dim meet an element of the input."""
    stride, dilation = int(window.get("stride", 1)), int(window.get("rhs_dilate", 1))
    base = int(window.get("lhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    starts = np.arange(out_size)[:, None] * stride - low
    positions = starts + np.arange(int(window.get("size", 1)))[None] * dilation
    inside = (positions >= 0) & (positions <= (in_size - 1) * base) & (positions % base == 0)
    return int(inside.sum())
