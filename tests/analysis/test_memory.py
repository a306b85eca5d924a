"""The compiler's memory plan of programs whose sizes are known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_jax.analysis.memory import memory


def test_bytes_per_device():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=split)
    report = memory(jax.jit(lambda x: (x + 1, x * 2), out_shardings=split).lower(x).compile())
    assert (report.argument, report.alias, report.temp) == (64 * 256 * 4 // 8, 0, 0)
    assert report.output >= 2 * report.argument
    assert report.total == report.argument + report.output


def test_donated_argument_is_counted_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    kept = memory(jax.jit(lambda x: x + 1).lower(x).compile())
    donated = memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert donated.alias == 4096
    assert donated.total == kept.total - 4096


def test_temporaries():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    report = memory(jax.jit(lambda x: jnp.dot(jnp.dot(x, x), x)).lower(x).compile())
    assert report.temp >= 256 * 256 * 4
    assert report.total == report.argument + report.output + report.temp
