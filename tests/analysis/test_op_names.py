"""Name stacks in words."""

import pytest

from hybrid_jax.analysis.op_names import source

LOOP = "jit(step)/shard_map/while/body/closed_call"


@pytest.mark.parametrize(
    ("op_name", "words"),
    [
        (
            f"{LOOP}/backward_slot/cond/branch_1_fun/transpose(jvp())/while/body/closed_call/"
            "shard_map/parameter/blocks/attention/k/kernel/all_gather",
            "blocks/attention/k/kernel, parameter",
        ),
        ("jit(step)/shard_map/gradient/head/norm/scale/psum", "head/norm/scale, gradient"),
        (
            "jit(step)/shard_map/forward_slot/cond/branch_1_fun/cond/branch_1_fun/embed/gather",
            "embed, forward: gather",
        ),
        (
            f"{LOOP}/head_slot/transpose(head_slot)/jvp(head)/dot_general",
            "head, backward: dot_general",
        ),
        (f"{LOOP}/head_slot/all_gather", "head: all_gather"),
        (
            f"{LOOP}/transpose(jvp(jvp()))/checkpoint/rematted_computation/blocks/mlp/dot_general",
            "blocks/mlp, recompute: dot_general",
        ),
        (f"{LOOP}/forward_slot/jvp(blocks)/mlp/dot_general", "blocks/mlp, forward: dot_general"),
        ("jit(step)/shard_map/to_next_stage/ppermute", "to_next_stage: ppermute"),
        ("jit(step)/shard_map/shard_map", "shard_map"),
        (
            "jit(step)/shard_map/(transpose(jvp(jvp()))/checkpoint/reduce_sum:reduce_sum)",
            "backward: reduce_sum",
        ),
        ("", "the compiler"),
    ],
)
def test_words(op_name, words):
    assert str(source(op_name)) == words
