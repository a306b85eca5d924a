"""The door for parameters that a run begins with: another model's are refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta
from jax.core import Tracer

from hybrid_jax.errors import UserError, nearest
from hybrid_jax.sharding.placement import path_name
from hybrid_jax.train.state import TrainState

PyTree = Any


def master_params(params: PyTree, shapes: PyTree) -> PyTree:
    """Returns parameters as float32 arrays in the tree of `shapes`.

    Floats that are narrower are cast, which loses nothing.

    >>> shapes = {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}
    >>> master_params({"kernel": np.ones(2, np.float16)}, shapes)["kernel"].dtype
    dtype('float32')

    Args:
      params: arrays in nested dicts, NNX states or Flax's boxes.
      shapes: of the model's parameters.

    Raises:
      UserError: a name, shape or dtype is not the model's; the paths are those of `shapes`.
    """
    if isinstance(params, TrainState):
        raise UserError(
            "init_from takes parameters, not a state: give it train.canonical_params(state), where "
            "train is the step that the state comes from."
        )
    given = {name: _array(leaf) for name, leaf in _by_name(params).items()}
    wanted = _by_name(shapes)
    _check_names(given, wanted)
    masters = [_master(name, given[name], want) for name, want in wanted.items()]
    # An array that stands in two places can be donated only once.
    first = {id(master): index for index, master in reversed(list(enumerate(masters)))}
    masters = [m if first[id(m)] == i else m.copy() for i, m in enumerate(masters)]
    return jax.tree.unflatten(jax.tree.structure(shapes), masters)


def _by_name(tree: PyTree) -> dict[str, Any]:
    is_leaf = lambda node: node is None or isinstance(node, nnx.Variable | meta.AxisMetadata)
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


def _array(leaf: Any) -> Any:
    if isinstance(leaf, nnx.Variable):
        return leaf.get_value()
    # Not `unbox`, which would place the array by its names.
    return getattr(leaf, "value", leaf) if isinstance(leaf, meta.AxisMetadata) else leaf


def _check_names(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        instead = f", but have {extra[0]}" if extra else ""
        raise UserError(
            f"the parameters lack {missing[0]}{more}{instead}: name them as model.init does."
            f"{nearest(missing[0], extra)}"
        )
    if extra:
        raise UserError(
            f"the parameters have {extra[0]}, which the model does not have: leave it out, or use "
            "the model that they belong to."
        )


def _master(name: str, leaf: Any, want: jax.ShapeDtypeStruct) -> Any:
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
        raise UserError(f"the parameter {name} is a {type(leaf).__name__}, not an array.")
    if leaf.shape != want.shape:
        raise UserError(
            f"the parameter {name} has shape {list(leaf.shape)}, but the model's has "
            f"{list(want.shape)}: they belong to another model."
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
        raise UserError(
            f"the parameter {name} is {leaf.dtype}, which float32 does not hold exactly: convert "
            "it by .astype(numpy.float32)."
        )
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
        raise UserError(
            f"the parameter {name} is gone, since it was donated: load or make the parameters anew."
        )
    return leaf.astype(want.dtype) if leaf.dtype != want.dtype else leaf
