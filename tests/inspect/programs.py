"""Small programs whose collectives are known exactly, for any mesh of stage 2 × data 2 × model 2."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("stage", "data", "model")
LOCAL_SHAPE = (4, 16)
LOCAL_BYTES = 4 * 16 * 4
"""Every program gets f32[32, 16], split over all eight devices: f32[4, 16] on each."""


def make_mesh(devices):
    return Mesh(np.array(devices).reshape(2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)


def psum_in_scan(x):
    return lax.scan(lambda x, _: (lax.psum(x, "data") * 0.5, None), x, length=5)[0]


def psum_over_two_axes(x):
    return lax.psum(x, ("stage", "model"))


def ppermute(x):
    return lax.ppermute(x, "stage", [(0, 1), (1, 0)])


def all_gather_in_nested_scan(x):
    def inner(x, _):
        return x + lax.all_gather(jnp.sin(x), "model", tiled=True).sum(0, keepdims=True), None

    def outer(x, _):
        return lax.scan(inner, jnp.cos(x), length=4)[0], None

    return lax.scan(outer, x, length=3)[0]


def psums_in_cond(x):
    """Two psums over `data` in one branch; one, and one over `model`, in the other."""
    return lax.cond(
        x[0, 0] > 0,
        lambda x: lax.psum(jnp.sin(lax.psum(x, "data")), "data"),
        lambda x: lax.psum(lax.psum(x, "data")[0:1], "model") + x,
        x,
    )


def all_to_all(x):
    return lax.all_to_all(x, "data", 0, 1, tiled=True)


def reduce_scatter(x):
    return lax.psum_scatter(x, "model", tiled=True)


def psum_in_while(x):
    return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: lax.psum(jnp.exp(x), "data"), x)


def compile_manual(function, mesh):
    """Compiles `function` of one local block, manual over all axes."""
    spec = PartitionSpec(AXES)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(mapped).lower(x).compile()


def compile_matmul(mesh):
    """f32[8, 16] @ f32[16, 4], contracted over a dim on `model`: an all-reduce of f32[4, 4]."""

    def matrix(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    a, b = matrix((8, 16), "data", "model"), matrix((16, 4), "model", None)
    out = NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(jnp.dot, out_shardings=out).lower(a, b).compile()
