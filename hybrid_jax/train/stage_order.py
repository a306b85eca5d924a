"""The order of the layers in memory: by depth on disk, by stage in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.config.depth import num_places
from hybrid_jax.errors import UserError
from hybrid_jax.train.state import DEPTH_ORDER

PyTree = Any

NO_LAYERS = -1


@dataclass(frozen=True)
class LayerOrder:
    """Moves stacked layers between depth order and the order in which stages own them.

    In depth order there are L layers; in that of the stages L' places, the next multiple of stages
    x chunks, of which those behind the last layer in depth hold zeros.

    Stage d owns chunks c = 0 … v-1, and chunk c of stage d is the (c S + d)-th group of layers, so
    that with several chunks a stage's layers are not neighbours in depth. With one chunk, and no
    place left empty, both orders are the same and nothing moves.

    Attributes:
      mesh: the run's.
      chunks: of every stage.
      num_layers: L.
      dims: tree of the dim of every leaf that counts layers; `NO_LAYERS` where there is none.
      shardings: tree of `NamedSharding`, in the order of the stages.
      canonical: the same in depth order.
    """

    mesh: Mesh
    chunks: int
    num_layers: int
    dims: PyTree
    shardings: PyTree
    canonical: PyTree

    @property
    def is_trivial(self) -> bool:
        """Whether both orders are the same."""
        return self.name == DEPTH_ORDER

    @property
    def name(self) -> str:
        """What a state in the order of the stages calls it."""
        return order_name(self.mesh.shape["stage"], self.chunks, self.num_layers)

    @property
    def padding(self) -> int:
        """Places that hold no layer."""
        return num_places(self.num_layers, self.mesh.shape["stage"] * self.chunks) - self.num_layers

    def to_stages(self, tree: PyTree) -> PyTree:
        """Reorders from depth order to the order of the stages."""
        return self._move(self._pad(tree), depth_of_slot(self.mesh.shape["stage"], self.chunks))

    def to_depth(self, tree: PyTree) -> PyTree:
        """The inverse of `to_stages`."""
        slots = depth_of_slot(self.mesh.shape["stage"], self.chunks)
        return self._cut(self._move(tree, np.argsort(slots)))

    def _pad(self, tree: PyTree) -> PyTree:
        """Adds places at the end of depth."""

        def pad(leaf, dim, padded, canonical):
            if dim == NO_LAYERS:
                return leaf
            widths = [(0, self.padding if axis == dim else 0) for axis in range(leaf.ndim)]
            # Twice, so that an array moves once, and nothing of it when it is padded.
            leaf = lax.with_sharding_constraint(jnp.pad(leaf, widths), canonical)
            return lax.with_sharding_constraint(leaf, padded)

        if not self.padding:
            return tree
        return jax.tree.map(pad, tree, self.dims, self.shardings, self.canonical)

    def _cut(self, tree: PyTree) -> PyTree:
        """The inverse of `_pad`."""

        def cut(leaf, dim, canonical):
            if dim == NO_LAYERS:
                return leaf
            leaf = lax.with_sharding_constraint(leaf, canonical)
            return lax.slice_in_dim(leaf, 0, leaf.shape[dim] - self.padding, axis=dim)

        return jax.tree.map(cut, tree, self.dims, self.canonical) if self.padding else tree

    def _move(self, tree: PyTree, source: np.ndarray) -> PyTree:
        if min(self.mesh.shape["stage"], self.chunks) == 1:
            return tree
        return jax.tree.map(
            lambda leaf, dim, sharding: _move_groups(leaf, dim, sharding, source, self.mesh),
            tree,
            self.dims,
            self.shardings,
        )


def order_name(stages: int, chunks: int, num_layers: int) -> str:
    """Returns the name of the order in which stages own their layers.

    >>> order_name(4, 1, num_layers=8), order_name(4, 2, num_layers=8)
    ('depth', '4 stages x 2 chunks')
    >>> order_name(3, 1, num_layers=5), order_name(2, 2, num_layers=5)
    ('5 layers in 6 places', '2 stages x 2 chunks, 5 layers in 8 places')
    """
    places = num_places(num_layers, stages * chunks)
    parts = [f"{stages} stages x {chunks} chunks"] if min(stages, chunks) > 1 else []
    parts += [f"{num_layers} layers in {places} places"] if places > num_layers else []
    return ", ".join(parts) or DEPTH_ORDER


def depth_of_slot(stages: int, chunks: int) -> np.ndarray:
    """Returns, for every slot (stage-major), the group of layers in depth order that lies there.

    >>> depth_of_slot(stages=2, chunks=2).tolist()
    [0, 2, 1, 3]
    """
    return np.arange(stages * chunks).reshape(chunks, stages).T.ravel()


def layer_dims(make: Callable[[PyTree], PyTree], shapes: PyTree) -> PyTree:
    """Finds the dim that counts layers in every leaf of a state, or `NO_LAYERS`.

    It is the dim that grows when the model gets one layer more. Looking at shapes alone could
    confuse it with a width of the same size, and optimizers may drop dims (Adafactor).

    Args:
      make: shapes of parameters {"embed", "blocks", "head"} -> the state.
      shapes: of the parameters.

    Raises:
      UserError: a leaf changes in more than one dim.
    """
    grow = lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype)
    taller = {**shapes, "blocks": jax.tree.map(grow, shapes["blocks"])}

    def find(path, leaf, grown):
        dims = [dim for dim, size in enumerate(leaf.shape) if grown.shape[dim : dim + 1] != (size,)]
        if len(dims) > 1 or leaf.ndim != grown.ndim:
            raise UserError(
                f"{jax.tree_util.keystr(path)}: shape {leaf.shape} becomes {grown.shape} with one "
                "layer more, so its layers cannot be told apart: use one chunk per stage."
            )
        return dims[0] if dims else NO_LAYERS

    return jax.tree_util.tree_map_with_path(
        find, jax.eval_shape(make, shapes), jax.eval_shape(make, taller)
    )


def exchange_rounds(source: np.ndarray, stages: int) -> list[np.ndarray]:
    """Splits a permutation of groups into rounds in which every stage sends and receives one.

    >>> [round.tolist() for round in exchange_rounds(np.array([0, 2, 1, 3]), stages=2)]
    [[1, 2], [0, 3]]

    Args:
      source: the group in slot i afterwards lay in slot source[i] before; slots are stage-major.

    Returns:
      For every round, the slot that each receiving stage fills in it.
    """
    left = set(range(len(source)))
    rounds = []
    while left:
        slots = _matching(left, source, stages)
        rounds.append(slots)
        left -= set(slots.tolist())
    return rounds


def _matching(left: set[int], source: np.ndarray, stages: int) -> np.ndarray:
    """Returns one slot of `left` for every receiving stage, filled by different senders.

    What is left is a regular bipartite graph, in which a perfect matching exists (König 1916);
    found by augmenting paths.
    """
    per_stage = len(source) // stages
    slot_by_sender: dict[int, int] = {}

    def place(receiver: int, tried: set[int]) -> bool:
        for slot in range(receiver * per_stage, (receiver + 1) * per_stage):
            sender = int(source[slot]) // per_stage
            if slot in left and sender not in tried:
                tried.add(sender)
                taken = slot_by_sender.get(sender)
                if taken is None or place(taken // per_stage, tried):
                    slot_by_sender[sender] = slot
                    return True
        return False

    for receiver in range(stages):
        placed = place(receiver, set())
        assert placed
    return np.array(sorted(slot_by_sender.values()))


def _move_groups(leaf, dim: int, sharding: NamedSharding, source: np.ndarray, mesh: Mesh):
    """Puts group source[i] of `dim` into slot i, without holding more than a stage's share."""
    if dim == NO_LAYERS:
        return leaf
    entry = sharding.spec[dim] if dim < len(sharding.spec) else None
    if entry != "stage":
        grouped = leaf.reshape(*leaf.shape[:dim], len(source), -1, *leaf.shape[dim + 1 :])
        return jnp.take(grouped, source, axis=dim).reshape(leaf.shape)
    stages = mesh.shape["stage"]
    per_stage = len(source) // stages
    rounds = exchange_rounds(source, stages)
    # For every stage and round, the slot it sends from and the slot it fills. An input, not
    # `axis_index`, which XLA refuses where another axis is left to it.
    sent, filled = np.empty((2, stages, per_stage), np.int32)
    for number, slots in enumerate(rounds):
        sent[source[slots] // per_stage, number] = source[slots] % per_stage
        filled[:, number] = slots % per_stage

    def exchange(local, sent, filled):
        shape = local.shape
        local = local.reshape(*shape[:dim], per_stage, -1, *shape[dim + 1 :])
        moved = jnp.zeros_like(local)
        for number, slots in enumerate(rounds):
            group = lax.dynamic_index_in_dim(local, sent[0, number], dim)
            pairs = list(zip((source[slots] // per_stage).tolist(), range(stages), strict=True))
            group = lax.ppermute(group, "stage", pairs)
            moved = lax.dynamic_update_index_in_dim(moved, group, filled[0, number], dim)
        return moved.reshape(shape)

    spec, row = PartitionSpec(*[None] * dim, "stage"), PartitionSpec("stage")
    return jax.shard_map(
        exchange,
        mesh=mesh,
        in_specs=(spec, row, row),
        out_specs=spec,
        axis_names={"stage"},
        check_vma=False,
    )(leaf, sent, filled)
