"""HLO that no CPU compile prints: shortened from ahead-of-time compiles for TPU, and GPU forms."""

# ruff: noqa: E501  (a line of HLO is one instruction)

import pytest
from jax.sharding import AbstractMesh

from hybrid_jax.analysis.hlo import Shape, parse
from hybrid_jax.analysis.ledger import ledger

MESH = AbstractMesh((2, 2), ("data", "model"))
PAYLOAD = 4096 * 1024 * 2

TPU_ASYNC_CHAIN = """
HloModule jit_fsdp, is_scheduled=true, num_partitions=4

%fused_computation.31 (param_0.85: bf16[4096,512]) -> (bf16[4096,512], bf16[4096,1024], u32[]) {
  %param_0.85 = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.47 = bf16[4096,1024]{1,0:T(8,128)(2,1)} all-gather(%param_0.85), channel_id=1, replica_groups={{0,2},{1,3}}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.3 = (bf16[4096,512]{1,0:T(8,128)(2,1)S(1)}, bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/u32[]{:S(2)}) custom-call(%all-gather.47), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.64 (param_0.89: bf16[4096,512], param_1.92: bf16[4096,1024]) -> bf16[4096,1024] {
  %param_0.89 = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.92 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %all-gather.49 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.89), channel_id=1, replica_groups={{0,2},{1,3}}, dimensions={1}, frontend_attributes={chain_id="0"}
}

%fused_computation.33 (param_0.91: bf16[4096,512], param_1.94: bf16[4096,1024]) -> bf16[4096,1024] {
  %param_0.91 = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.94 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.51 = bf16[4096,1024]{1,0:T(8,128)(2,1)} all-gather(%param_0.91), channel_id=1, replica_groups={{0,2},{1,3}}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.5 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.91, %param_1.94, %all-gather.51), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (param: bf16[4096,512]) -> bf16[4096,1024] {
  %param = bf16[4096,512]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.90 = bf16[4096,1024]{1,0:T(8,128)(2,1)} all-gather(%param), channel_id=1, replica_groups={{0,2},{1,3}}, dimensions={1}, frontend_attributes={async_collective_name="all-gather-start"}
  %async-collective-start = (bf16[4096,512]{1,0:T(8,128)(2,1)S(1)}, bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/u32[]{:S(2)}) fusion(%param), kind=kCustom, calls=%fused_computation.31
  %gte.0 = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=0
  %gte.1 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %fusion.64 = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%gte.0, %gte.1), kind=kCustom, calls=%async_collective_fusion.64
  ROOT %async-collective-done = bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%gte.0, %gte.1), kind=kCustom, calls=%fused_computation.33
}
"""

TPU_REDUCE_SCATTER = """
HloModule jit_rs, num_partitions=4

%all-reduce-scatter (input: bf16[4096,1024]) -> bf16[2048,1024] {
  %input = bf16[4096,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[4096,1024]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=2, replica_groups={{0,2},{1,3}}, to_apply=%add, frontend_attributes={from-cross-replica-sharding="true"}
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.3 = bf16[2048,1024]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={2048,1024}
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

ENTRY %main (x: bf16[4096,1024]) -> bf16[2048,1024] {
  %x = bf16[4096,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion = bf16[2048,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""

START_AND_DONE = """
HloModule m, num_partitions=4

%async_computation (p: bf16[4096,1024]) -> bf16[2048,1024] {
  %p = bf16[4096,1024]{1,0} parameter(0)
  ROOT %rs = bf16[2048,1024]{1,0} reduce-scatter(%p), channel_id=3, replica_groups=[2,2]<=[4], dimensions={0}, to_apply=%add
}, execution_thread="main"

ENTRY %main (x: bf16[4096,1024]) -> bf16[4096,1024] {
  %x = bf16[4096,1024]{1,0} parameter(0)
  %permute-start = (bf16[4096,1024]{1,0}, bf16[4096,1024]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,2},{1,3},{2,0},{3,1}}
  %permute-done = bf16[4096,1024]{1,0} collective-permute-done(%permute-start)
  %rs-start = ((bf16[4096,1024]{1,0}), bf16[2048,1024]{1,0}) async-start(%permute-done), calls=%async_computation
  %rs-done = bf16[2048,1024]{1,0} async-done(%rs-start), calls=%async_computation
  %gather-start = (bf16[2048,1024]{1,0}, bf16[4096,1024]{1,0}) all-gather-start(%rs-done), channel_id=4, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  ROOT %gather-done = bf16[4096,1024]{1,0} all-gather-done(%gather-start)
}
"""

# A Pallas kernel: its metadata breaks the line, and a line of it starts with a brace.
TPU_KERNEL = """
HloModule jit_step, num_partitions=4

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %carry = (s32[], bf16[8,16]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%carry), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%carry), index=1
  %splash = bf16[8,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[8,16]{1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"q_layout\\": 1}"
}}, metadata={op_name="jit(step)/while/body/splash"}
  %sum = bf16[8,16]{1,0} all-reduce(%splash), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/while/body/dot_general"}
  %one = s32[] constant(1)
  %next = s32[] add(%index, %one)
  ROOT %tuple = (s32[], bf16[8,16]{1,0}) tuple(%next, %sum)
}

%condition (carry.1: (s32[], bf16[8,16])) -> pred[] {
  %carry.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %index.1 = s32[] get-tuple-element(%carry.1), index=0
  %bound = s32[] constant(32)
  ROOT %less = pred[] compare(%index.1, %bound), direction=LT
}

ENTRY %main (x.1: bf16[8,16]) -> (s32[], bf16[8,16]) {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16]{1,0}) tuple(%zero, %x.1)
  ROOT %loop = (s32[], bf16[8,16]{1,0}) while(%start), condition=%condition, body=%body
}
"""

TUPLE_FORMS = """
HloModule m, num_partitions=4

ENTRY %main (x: f32[8,4], y: bf16[8]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %offsets = s32[2]{0} constant({0, 4})
  %sum = (f32[8,4]{1,0}, bf16[8]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %ragged = f32[8,4]{1,0} ragged-all-to-all(%x, %x, %offsets, %offsets, %offsets, %offsets), channel_id=2, replica_groups={{0,1},{2,3}}
  ROOT %first = f32[8,4]{1,0} get-tuple-element(%sum), index=0
}
"""


def kinds(text):
    return [(row.kind, row.axes, row.bytes) for row in ledger(text, MESH).rows]


def test_tpu_chain_of_fusions_is_one_collective():
    """One plain all-gather and one that three fusions repeat, on the same channel."""
    assert kinds(TPU_ASYNC_CHAIN) == [("all-gather", ("data",), PAYLOAD)] * 2


def test_tpu_reduce_scatter_fusion():
    assert kinds(TPU_REDUCE_SCATTER) == [("reduce-scatter", ("data",), PAYLOAD)]


def test_tpu_reduce_scatter_has_the_name_of_its_fusion():
    named = TPU_REDUCE_SCATTER.replace(
        "calls=%all-reduce-scatter", 'calls=%all-reduce-scatter, metadata={op_name="jit(f)/dot"}'
    )
    assert [row.op_name for row in ledger(named, MESH).rows] == ["jit(f)/dot"]


def test_asynchronous_pairs_count_once():
    assert kinds(START_AND_DONE) == [
        ("collective-permute", ("data",), PAYLOAD),
        ("reduce-scatter", ("model",), PAYLOAD),
        ("all-gather", ("data",), PAYLOAD),
    ]


def test_a_kernel_of_several_lines_does_not_end_its_computation():
    (row,) = ledger(TPU_KERNEL, MESH).rows
    assert (row.kind, row.axes, row.bytes, row.trips) == ("all-reduce", ("model",), 256, (32,))
    body = parse(TPU_KERNEL).computations["body"]
    assert body.instructions["splash"].op_name == "jit(step)/while/body/splash"
    assert body.root == "tuple"


def test_payload_of_several_arrays():
    joined, ragged = ledger(TUPLE_FORMS, MESH).rows
    assert (joined.kind, joined.bytes, joined.dtype) == ("all-reduce", 128 + 16, "f32+bf16")
    assert (ragged.kind, ragged.bytes, ragged.dtype) == ("all-to-all", 128, "f32")


def test_types_with_tiles_tuples_and_comments():
    module = parse(TPU_ASYNC_CHAIN)
    start = module.computations["main"].instructions["async-collective-start"]
    assert start.shapes == (
        Shape("bf16", (4096, 512)),
        Shape("bf16", (4096, 1024)),
        Shape("u32", ()),
    )
    assert (start.opcode, start.operands) == ("fusion", ("param",))
    assert start.called == {"calls": ("fused_computation.31",)}
    assert module.computations["main"].root == "async-collective-done"


@pytest.mark.parametrize(
    ("shape", "num_bytes"),
    [
        (Shape("f32", ()), 4),
        (Shape("pred", (3,)), 3),
        (Shape("f8e4m3fn", (8,)), 8),
        (Shape("s4", (3,)), 2),
        (Shape("c64", (2,)), 16),
    ],
)
def test_bytes(shape, num_bytes):
    assert shape.num_bytes == num_bytes
