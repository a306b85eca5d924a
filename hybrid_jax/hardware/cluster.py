"""Clusters: which chips, how many, and how they are joined."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_jax.config.checks import did_you_mean, matching, shown
from hybrid_jax.config.strategy import MESH_AXES, Strategy
from hybrid_jax.config.yaml_text import parse_yaml
from hybrid_jax.errors import UserError, nearest
from hybrid_jax.hardware.chips import CHIPS, Chip, chip_of_kind, with_jax_memory
from hybrid_jax.hardware.fields import chip_field
from hybrid_jax.hardware.links import Link, TorusDim, take_torus
from hybrid_jax.hardware.topologies import check_torus, host_bounds, torus_of, wrapped_dims


@dataclass(frozen=True)
class Cluster:
    """Equal chips: a torus of TPUs (or several slices of one), or hosts of GPUs.

    >>> Cluster.of("v5p:4x4x4").num_devices
    64
    >>> Cluster.of("h100:64").hosts
    8

    Attributes:
      chip: what each device is.
      shape: of one torus; (devices,) where a switch joins them.
      slices: tori joined by the data-centre network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return math.prod(self.shape) * self.slices

    @property
    def hosts(self) -> int:
        """Machines in all; Cloud TPU drives a slice beyond one host by boards of four chips.

        >>> Cluster.of("v5e:2x4").hosts, Cluster.of("v5e:4x4").hosts, Cluster.of("v5p:4").hosts
        (1, 4, 1)
        """
        if self.chip.torus_dims:
            per_host = math.prod(host_bounds(self.shape, self.chip))
            return self.slices * (math.prod(self.shape) // per_host)
        return -(-self.num_devices // self.chip.host)

    @property
    def islands(self) -> int:
        """Groups of devices joined by fast links: slices of TPUs, hosts of GPUs."""
        if self.chip.torus_dims:
            return self.slices
        return -(-self.num_devices // self.chip.domain)

    def describe(self) -> str:
        """Returns the name that `of` reads.

        >>> Cluster.of("v5e:16").describe()
        'v5e:4x4'
        """
        sizes = self.shape if self.slices == 1 else (*self.shape, self.slices)
        return f"{self.chip.name}:{'x'.join(map(str, sizes))}"

    @classmethod
    def of(cls, devices: Any) -> Cluster:
        """Returns the cluster that `devices` names.

        Args:
          devices: "v5p:4x4x4" (a torus), "v5e:16x16x2" (one number more: slices), "h200:8",
            "h100:64" (8 in a host), the path of a YAML file or a mapping {"chip": name, "devices":
            as before the colon, any field of `Chip`: value}, a `jax.sharding.Mesh`,
            `jax.devices()`, or a Cluster.

        Raises:
          UserError: an unknown chip, or a count or topology that there is not.
        """
        if isinstance(devices, Cluster):
            return devices
        if isinstance(devices, Mapping):
            return _from_mapping(dict(devices))
        if isinstance(devices, (str, Path)):
            text = str(devices)
            if text.endswith((".yaml", ".yml")):
                return _from_file(Path(text))
            return _parse(text)
        if hasattr(devices, "devices") and hasattr(devices, "axis_names"):
            return _from_devices(list(devices.devices.flat))
        if isinstance(devices, Sequence) and devices and hasattr(devices[0], "device_kind"):
            return _from_devices(list(devices))
        raise UserError(
            f"devices={devices!r} must be a name such as 'v5p:4x4x4' or 'h200:8', a YAML file, a "
            "mapping, a mesh or a list of devices."
        )

    def links(self, strategy: Strategy) -> dict[str, Link]:
        """What joins the devices along each mesh axis, laid as `make_mesh` lays them."""
        if self.chip.torus_dims:
            return self._torus_links(strategy)
        stride, links = 1, {}
        for axis in reversed(MESH_AXES):
            size = getattr(strategy, axis)
            inner = math.gcd(size, max(self.chip.domain // stride, 1))
            links[axis] = self._link(inner, size // inner, self.chip.link_bandwidth)
            stride *= size
        return links

    def _torus_links(self, strategy: Strategy) -> dict[str, Link]:
        """Slices go to the outermost axes, torus dims to the innermost first."""
        left, outer = self.slices, {}
        for axis in MESH_AXES:
            size = getattr(strategy, axis)
            outer[axis] = math.gcd(size, left) if axis in ("replica", "stage", "data") else 1
            left //= outer[axis]
        wraps = wrapped_dims(self.shape, self.chip)
        dims = [TorusDim(*dim) for dim in zip(self.shape, wraps, strict=True) if dim[0] > 1]
        links = {}
        for axis in reversed(MESH_AXES):
            inner = getattr(strategy, axis) // outer[axis]
            speed = take_torus(dims, inner) * self.chip.link_bandwidth
            links[axis] = self._link(inner, outer[axis], speed)
        return links

    def _link(self, inner: int, outer: int, bandwidth: float) -> Link:
        fast, slow = {"tpu": ("ICI", "DCN"), "gpu": ("NVLink", "IB")}.get(
            self.chip.platform, ("memory", "network")
        )
        names = [fast] * (inner > 1) + [slow] * (outer > 1)
        fraction = self.chip.link_fraction
        return Link(
            inner,
            outer,
            bandwidth * fraction,
            self.chip.network_bandwidth * fraction,
            "+".join(names) or "-",
        )


def _parse(text: str) -> Cluster:
    name, colon, sizes = text.partition(":")
    chip = _chip(name)
    if not colon or not sizes:
        example = f"{name}:{'x'.join('4' * chip.torus_dims) or '8'}"
        raise UserError(f"devices={text!r} says no number of devices: write {example!r}, say.")
    return _cluster(chip, sizes, text)


def _cluster(chip: Chip, sizes: str, text: str) -> Cluster:
    parts = sizes.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            f"devices={text!r}: {sizes!r} must be whole numbers above 0 with 'x' in between."
        )
    shape = tuple(map(int, parts))
    if not chip.torus_dims:
        return _switched(chip, shape, text)
    if len(shape) == 1:
        shape = torus_of(shape[0], chip, text)
    if len(shape) not in (chip.torus_dims, chip.torus_dims + 1):
        raise UserError(
            f"devices={text!r}: a {chip.name} slice has {chip.torus_dims} dims (one number more "
            f"is the number of slices), not {len(shape)}."
        )
    torus, slices = shape[: chip.torus_dims], (*shape, 1)[chip.torus_dims]
    check_torus(torus, chip, text)
    return Cluster(chip, torus, slices)


def _switched(chip: Chip, shape: tuple[int, ...], text: str) -> Cluster:
    count = math.prod(shape)
    if len(shape) > 1:
        raise UserError(
            f"devices={text!r}: {chip.name} has no torus: give the number of devices, "
            f"'{chip.name}:{count}'."
        )
    if count > chip.host and count % chip.host:
        raise UserError(
            f"devices={text!r}: hosts have {chip.host} {chip.name}, and {count} is no multiple: "
            f"use {count // chip.host * chip.host} or {-(-count // chip.host) * chip.host}."
        )
    return Cluster(chip, (count,))


def _chip(name: str) -> Chip:
    if matching(name, CHIPS) is None:
        raise UserError(
            f"unknown chip {shown(name)}: choose one of {', '.join(CHIPS)}, or describe it in a "
            f"YAML file.{did_you_mean(name, CHIPS)}"
        )
    return CHIPS[name]


def _from_file(path: Path) -> Cluster:
    if not path.is_file():
        raise UserError(f"devices={str(path)!r}: no such file.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"devices={str(path)!r} cannot be read: {error}.") from None
    fields = parse_yaml(text, f"devices={str(path)!r}")
    if not isinstance(fields, dict):
        raise UserError(f"devices={str(path)!r} must hold a mapping, such as 'chip: h100'.")
    return _from_mapping(fields)


def _from_mapping(fields: dict[str, Any]) -> Cluster:
    base = fields.pop("chip", None)
    sizes = fields.pop("devices", None)
    if base is None or sizes is None:
        raise UserError("a cluster needs 'chip' (a known one) and 'devices', such as 8 or '4x4x4'.")
    known = [field.name for field in dataclasses.fields(Chip)]
    for name, value in fields.items():
        if name not in known:
            raise UserError(
                f"unknown field {name!r} of a chip: the fields are {', '.join(known)}."
                f"{nearest(str(name), known)}"
            )
        fields[name] = chip_field(name, value)
    return _cluster(dataclasses.replace(_chip(base), **fields), str(sizes), f"{base}:{sizes}")


def _from_devices(devices: list[Any]) -> Cluster:
    kind = devices[0].device_kind
    name = chip_of_kind(kind)
    if name is None:
        raise UserError(f"devices of unknown kind {kind!r}: describe them in a YAML file.")
    # The environment is the same in all processes of a run, as the plan must be.
    chip = with_jax_memory(CHIPS[name], os.environ)
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if not chip.torus_dims:
        return Cluster(chip, (len(devices),))
    coords = [device.coords for device in devices]
    sizes = [len({coord[dim] for coord in coords}) for dim in range(chip.torus_dims)]
    return Cluster(chip, tuple(sizes), slices)
