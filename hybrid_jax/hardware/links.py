"""What joins the devices along a mesh axis, and how fast it is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What joins the devices along one mesh axis: fast links inside, the network outside.

    Attributes:
      inner: devices of a group that fast links join.
      outer: such groups, joined by the network.
      inner_bandwidth, outer_bandwidth: bytes/s that one device sends over each.
      name: "ICI", "NVLink", "DCN", "IB" or "ICI+DCN".
    """

    inner: int
    outer: int
    inner_bandwidth: float
    outer_bandwidth: float
    name: str

    def seconds(self, num_bytes: float) -> float:
        """Time of an all-gather or reduce-scatter of `num_bytes` whole; both levels at once.

        Through the network goes only what the group's own devices have not got: each sends
        1/inner of it.
        """
        inside = num_bytes * (self.inner - 1) / self.inner / self.inner_bandwidth
        outside = num_bytes * (self.outer - 1) / self.outer / (self.inner * self.outer_bandwidth)
        return max(inside, outside)

    def permute_seconds(self, num_bytes: float) -> float:
        """Time of handing `num_bytes` to the neighbour; the slowest neighbour counts."""
        if self.inner * self.outer == 1:
            return 0.0
        return num_bytes / (self.outer_bandwidth if self.outer > 1 else self.inner_bandwidth)


@dataclass
class TorusDim:
    """What is left of a torus dim: `size` positions, `stride` links apart."""

    size: int
    wraps: bool
    stride: int = 1


def take_torus(dims: list[TorusDim], size: int) -> float:
    """Takes `size` positions of the torus for one axis; returns the links that serve it at once.

    A closed ring serves both ways; a group that skips positions shares its links with the groups
    in between.
    """
    links = 0.0
    fits = (
        lambda dim, part: dim.size == size,  # one ring for the axis alone
        lambda dim, part: dim.size == part,  # several whole rings
        lambda dim, part: True,
    )
    for fit in fits:
        for dim in dims:
            part = math.gcd(size, dim.size)
            if part == 1 or not fit(dim, part):
                continue
            ring = part == dim.size and dim.wraps and dim.stride == 1
            links += (2 if ring else 1) / dim.stride
            dim.size //= part
            dim.stride *= part
            size //= part
    return links or 1.0
