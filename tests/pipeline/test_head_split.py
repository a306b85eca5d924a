"""The last stage's tokens dealt out to all stages, and put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from hybrid_jax.errors import UserError
from hybrid_jax.pipeline.head_split import HeadSplit, split_head

STAGES, WIDTH = 4, 2
BOTH = ("batch", "length")


def on_every_stage(function):
    """Runs `function(stage)` on four stages; results are stacked, [stages, ...]."""
    mesh = Mesh(np.array(jax.devices()[:STAGES]), ("stage",))

    def body():
        return jax.tree.map(lambda x: x[None], function(lax.axis_index("stage")))

    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(), out_specs=PartitionSpec("stage"), check_vma=False
    )
    return jax.device_get(jax.jit(mapped)())


def example(batch, length):
    return np.arange(1, batch * length * WIDTH + 1, dtype=np.float32).reshape(batch, length, WIDTH)


@pytest.mark.parametrize(
    ("batch", "length", "dim"), [(8, 3, 0), (3, 8, 1), (3, 7, 1), (6, 2, 0), (1, 2, 1)]
)
def test_every_stage_gets_its_slice_and_all_get_the_whole_back(batch, length, dim):
    size = (batch, length)[dim]
    x = example(batch, length)
    split = HeadSplit(STAGES, dim, jax.ShapeDtypeStruct(x.shape, x.dtype))

    def scatter_and_gather(stage):
        # Only the last stage has an output; what the others hold must not matter.
        share = split.scatter(jnp.where(stage == STAGES - 1, x, jnp.nan))
        return share, split.gather(share), split.own({"x": x}, {"x": BOTH}, stage)["x"]

    shares, wholes, own = on_every_stage(scatter_and_gather)
    padded = np.concatenate(list(shares), axis=dim)
    np.testing.assert_array_equal(padded.take(range(size), axis=dim), x)
    assert not padded.take(range(size, padded.shape[dim]), axis=dim).any()
    np.testing.assert_array_equal(wholes, [x] * STAGES)
    np.testing.assert_array_equal(own, shares)


def test_own_pads_weights_with_zeros_and_leaves_what_lacks_the_dim():
    split = HeadSplit(STAGES, 1, jax.ShapeDtypeStruct((2, 7, WIDTH), jnp.float32))
    batch = {"weights": jnp.ones((2, 7)), "example": jnp.arange(2), "label": jnp.ones((2, 8))}
    axes = {"weights": BOTH, "example": ("batch",), "label": ("batch", None)}
    slices = [split.own(batch, axes, stage) for stage in range(STAGES)]
    np.testing.assert_array_equal([s["weights"].sum() for s in slices], [4, 4, 4, 2])
    for own in slices:
        np.testing.assert_array_equal(own["example"], [0, 1])
        assert own["label"].shape == (2, 8)  # its second dim is no length


def test_every_array_of_a_carry_is_split_along_its_own_length():
    carry = {"x": example(2, 8), "memory": example(2, 12)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), carry)
    split = split_head(shapes, {}, STAGES, ("length",))
    shares, wholes = on_every_stage(
        lambda stage: (share := split.scatter(carry), split.gather(share))
    )
    assert (shares["x"].shape[2], shares["memory"].shape[2]) == (2, 3)
    for name, x in carry.items():
        np.testing.assert_array_equal(wholes[name], [x] * STAGES)


@pytest.mark.parametrize(
    ("shape", "head_dims", "dim"),
    [
        ((8, 8, WIDTH), BOTH, 0),  # both divide: whole examples
        ((8, 7, WIDTH), BOTH, 0),
        ((3, 8, WIDTH), BOTH, 1),
        ((3, 7, WIDTH), BOTH, 1),  # neither: less padding along the longer dim
        ((3, 8, WIDTH), ("batch",), 0),  # the head looks along the length
    ],
)
def test_which_dim_is_split(shape, head_dims, dim):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert split_head(x, {"weights": None}, STAGES, head_dims).dim == dim


def test_padding_needs_weights():
    x = jax.ShapeDtypeStruct((3, 7, WIDTH), jnp.float32)
    with pytest.raises(UserError, match=r"7 rows do not split over stage=4: .*'weights'") as error:
        split_head(x, {"tokens": None}, STAGES, BOTH)
    assert "\n" not in str(error.value)
    assert split_head(jax.ShapeDtypeStruct((4, 7, 2), jnp.float32), {}, STAGES, BOTH).dim == 0
