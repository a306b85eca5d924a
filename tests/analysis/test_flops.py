"""FLOPs of compiled programs against formulas derived by hand."""

# ruff: noqa: E501  (a line of HLO is one instruction)

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from jax import lax

import hybrid_jax as hj
from hybrid_jax.analysis.flops import program_flops
from hybrid_jax.config.model import flops_per_token

SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
MATMUL = 2 * 16**3


def flops(function, *shapes):
    return program_flops(jax.jit(function).lower(*shapes).compile().as_text())


def chain(x, length):
    return lax.scan(lambda x, _: (x @ x, None), x, length=length)[0]


@pytest.mark.parametrize(
    ("function", "matmuls"),
    [
        (lambda x: x @ x, 1),
        (
            lambda x: jnp.einsum(
                "bij,bjk->bik", x[None] + jnp.ones((3, 1, 1)), x[None] - jnp.ones((3, 1, 1))
            ),
            3,
        ),
        (lambda x: chain(x, 7), 7),
        (lambda x: lax.scan(lambda x, _: (chain(jnp.sin(x), 3), None), x, length=5)[0], 15),
        (lambda x: jnp.tanh(x) + 1, 0),
    ],
)
def test_matmuls_and_scans(function, matmuls):
    found = flops(function, SQUARE)
    assert (found.hardware, found.optional) == (matmuls * MATMUL, 0)
    assert found.model is None and found.useful_fraction is None


def test_rectangles():
    a, b = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert flops(jnp.matmul, a, b).hardware == 2 * 3 * 5 * 7


def test_the_heaviest_branch_counts_and_what_may_be_skipped_is_told():
    def program(x):
        return lax.cond(x[0, 0] > 0, lambda x: chain(x, 4), lambda x: jnp.sin(x @ x), x)

    found = flops(lambda x: lax.scan(lambda x, _: (program(x), None), x, length=3)[0], SQUARE)
    assert (found.hardware, found.optional) == (12 * MATMUL, 9 * MATMUL)


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    found = flops(lambda x: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), SQUARE)
    assert found.hardware == MATMUL
    assert len(found.unknown_loops) == 1


def test_a_real_convolution():
    """Padded on all sides: 3 x 3 taps in the middle, fewer at the borders."""
    image, kernel = (
        jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32),
    )
    found = flops(
        lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        image,
        kernel,
    )
    assert found.hardware == 2 * 2 * 3 * 5 * (3 * 8 - 2) ** 2


def instruction(line, *operands):
    names = [f"%p{i}" for i in range(len(operands))]
    parameters = [
        f"  {n} = {o} parameter({i})" for i, (n, o) in enumerate(zip(names, operands, strict=True))
    ]
    text = "\n".join(
        [
            "HloModule m",
            "ENTRY %main (p: f32[]) -> f32[] {",
            *parameters,
            f"  ROOT {line}".replace("ARGS", ", ".join(names)),
            "}",
        ]
    )
    return program_flops(text)


# Shortened from compiles for v5p: matmuls of a decoder layer, T = 512, D = 512, 2 heads of 128.
WINDOWED = [
    ("%q = bf16[4,512,2,128]{3,1,2,0} convolution(ARGS), window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
     ["bf16[4,512,512,1]{2,1,3,0}", "bf16[512,2,128,1]{2,0,1,3}"], 2 * 4 * 512 * 512 * 2 * 128),
    ("%o = bf16[4,512,512,1]{2,1,3,0} convolution(ARGS), window={size=1x2}, dim_labels=0b1f_1io0->0bf1",
     ["bf16[4,512,2,128]{3,1,2,0}", "bf16[2,128,512,1]{2,1,3,0}"], 2 * 4 * 512 * 2 * 128 * 512),
    ("%dq = bf16[512,2,128,1]{2,0,1,3} convolution(ARGS), window={size=2x4 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=1fb0_1i0o->b0f1",
     ["bf16[4,512,512,1]{2,1,3,0}", "bf16[4,512,2,128]{3,1,2,0}"], 2 * 4 * 512 * 512 * 2 * 128),
    ("%down = f32[512,1024]{1,0} convolution(ARGS), dim_labels=bf_io->bf",
     ["bf16[512,256]{1,0}", "bf16[256,1024]{1,0}"], 2 * 512 * 256 * 1024),
]  # fmt: skip


@pytest.mark.parametrize(("line", "operands", "expected"), WINDOWED)
def test_matmuls_as_tpu_writes_them(line, operands, expected):
    assert instruction(line, *operands).hardware == expected


def test_gemm_of_a_gpu():
    line = '%g = (f32[32,64]{1,0}, s8[4194304]{0}) custom-call(ARGS), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
    found = instruction(line, "f32[32,16]{1,0}", "f32[16,64]{1,0}")
    assert (found.hardware, found.not_counted) == (2 * 32 * 16 * 64, ())


HEADS_FIRST, HEADS_LAST = "bf16[4,2,512,128]{3,2,1,0}", "bf16[4,512,2,128]{3,2,1,0}"
SCORES = 2 * 4 * 2 * 512 * 512 * 128


@pytest.mark.parametrize(
    ("target", "op_name", "operands", "matmuls"),
    [
        ("tpu_custom_call", "blocks/splash_mha_fwd_residuals/pallas_call", ["s8[1,1,1]{2,1,0}", *[HEADS_FIRST] * 3], 2),
        ("tpu_custom_call", "blocks/splash_mha_dkv_no_residuals/pallas_call", ["s8[1,1,1]{2,1,0}", *[HEADS_FIRST] * 3], 4),
        ("tpu_custom_call", "blocks/splash_mha_dq_no_residuals/pallas_call", ["s8[1,1,1]{2,1,0}", *[HEADS_FIRST] * 3], 3),
        ("__cudnn$fmhaSoftmax", "blocks/attention", [HEADS_LAST] * 3, 2),
        ("__cudnn$fmhaSoftmaxBackward", "blocks/attention", [HEADS_LAST] * 5, 5),
    ],
)  # fmt: skip
def test_attention_kernels_by_their_operands(target, op_name, operands, matmuls):
    line = f'%k = (bf16[4,2,512,128]{{3,2,1,0}}) custom-call(ARGS), custom_call_target="{target}", metadata={{op_name="{op_name}"}}'
    found = instruction(line, *operands)
    assert found.hardware == found.attention_kernels == matmuls * SCORES


def test_a_kernel_that_states_its_cost_and_one_that_does_not():
    """The metadata of a Pallas kernel has line breaks, and may be followed by the end of all."""
    body = '%k = bf16[8]{0} custom-call(ARGS), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n"xprof_metadata":"{}"\n}}, backend_config={"custom_call_config":{"body":"TUzv"COST}}'
    stated = body.replace("COST", ',"cost_estimate":{"flops":"12345","transcendentals":"3"}')
    assert instruction(stated, "bf16[8]{0}").hardware == 12345
    silent = instruction(body.replace("COST", ""), "bf16[8]{0}")
    assert (silent.hardware, silent.not_counted) == (0, ("k",))
    both = instruction(f"{stated}\n  {body.replace('%k', '%l').replace('COST', '')}", "bf16[8]{0}")
    assert (both.hardware, both.not_counted) == (12345, ("l",))


# ---- the step of a decoder -------------------------------------------------------------------

CONFIG = tiny.decoder().config
BATCH, TOKENS = (8, tiny.LENGTH), 8 * tiny.LENGTH


def step_flops(**fields):
    strategy = hj.Strategy(precision="f32", **fields)
    mesh = hj.make_mesh(strategy, jax.devices()[: strategy.num_devices])
    train = hj.make_train_step(tiny.decoder(), optax.sgd(1e-3), strategy, mesh)
    return hj.inspect(train, BATCH).flops


def weights() -> int:
    """Entries of one layer's matrices."""
    attention = 2 * (CONFIG.num_heads + CONFIG.num_kv_heads) * CONFIG.head_dim
    return CONFIG.embed_dim * (attention + 3 * CONFIG.mlp_dim)


SQUARES = 2 * TOKENS * CONFIG.num_heads * CONFIG.head_dim * tiny.LENGTH
"""One matmul over the scores. Forward two of them; backward five, the scores being made anew."""

HEAD = 6 * TOKENS * CONFIG.embed_dim * CONFIG.vocab_size
DOWN = 2 * TOKENS * CONFIG.mlp_dim * CONFIG.embed_dim
RECOMPUTED = {
    "none": 0,
    # The attention's output; its scores are those that the backward pass makes anew anyway.
    "dots": SQUARES,
    # Nobody needs the layer's output again, so not its last matmul either.
    "layer": 2 * TOKENS * weights() - DOWN + SQUARES,
    # All of it, in a loop of its own.
    "stage": 2 * TOKENS * weights() + 2 * SQUARES,
}


def layers(remat: str) -> int:
    """FLOPs of all layers of one step, forward and backward."""
    return CONFIG.num_layers * (6 * TOKENS * weights() + 7 * SQUARES + RECOMPUTED[remat])


@pytest.mark.parametrize("remat", RECOMPUTED)
def test_rematerialisation(remat):
    found = step_flops(remat=remat)
    assert found.hardware == layers(remat) + HEAD
    assert found.model == flops_per_token(CONFIG, tiny.LENGTH) * TOKENS
    # Of what the model needs, one score matmul in six is made twice whatever the policy.
    assert found.model == found.hardware - CONFIG.num_layers * (RECOMPUTED[remat] + SQUARES)


@pytest.mark.parametrize(
    "fields",
    [{"data": 8}, {"data": 2, "model": 2, "zero": 3}, {"model": 2, "rules": "megatron+sp"}],
)
def test_devices_share_the_work(fields):
    found, devices = step_flops(**fields), hj.Strategy(**fields).num_devices
    assert found.hardware == (layers("layer") + HEAD) / devices
    assert found.optional == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"stage": 2, "microbatches": 4},
        {"stage": 4, "microbatches": 4, "schedule": "gpipe"},
        {"stage": 2, "microbatches": 4, "schedule": "interleaved", "chunks": 2},
    ],
    ids=lambda fields: fields.get("schedule", "1f1b"),
)
def test_bubbles_are_computed_unless_skipped(fields):
    """Masked idle ticks cost (S-1)/(vM) of the layers' work, and nothing of the head's."""
    stages, slots = fields["stage"], fields["microbatches"] * fields.get("chunks", 1)
    masked, skipped = (step_flops(skip_bubbles=skip, **fields) for skip in (False, True))
    assert skipped.hardware == (layers("layer") + HEAD) / stages
    assert masked.hardware - skipped.hardware == (stages - 1) / slots * layers("layer") / stages
    assert masked.optional == skipped.optional == 0
