"""A profile holds the chosen steps, each of them whole, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.hooks import Profile
from hybrid_jax.train.state import TrainState
from hybrid_jax.trainer import EveryN, Trainer

matmul = jax.jit(lambda params: params @ params / 64)


class Matmul:
    def step(self, state, batch):
        params = matmul(state.params)
        return TrainState(state.step + 1, params, ()), {"loss": params[0, 0]}


class Nothing:
    def batch(self, step):
        return {}


def steps_in(folder):
    """The steps that the traces in `folder` show."""
    found = []
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            events = [event for line in plane.lines for event in line.events]
            found += [dict(event.stats)["step_num"] for event in events if event.name == "step"]
    return found


@pytest.mark.parametrize(
    ("first", "last", "begin", "steps", "traced"),
    [
        (3, 4, 0, 8, [3, 4]),
        (1, 3, 0, 8, [1, 2, 3]),
        (2, 5, 3, 8, [4, 5]),
        (2, 3, 4, 8, []),
        (5, 9, 0, 6, [5, 6]),
    ],
    ids=["amid", "from the first", "resumed amid", "resumed behind", "run too short"],
)
def test_exactly_these_steps(tmp_path, first, last, begin, steps, traced):
    state = TrainState(jnp.int32(begin), jnp.ones((64, 64)), ())
    hook = EveryN(1, Profile(first, last, tmp_path / "trace"))
    state = Trainer(Matmul(), Nothing(), steps=steps, hooks=[hook]).fit(state)
    assert int(state.step) == steps
    assert steps_in(tmp_path) == traced
    np.testing.assert_array_equal(state.params, 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder '.*file' cannot be made: File exists"):
        Profile(1, 2, tmp_path / "file")


def test_a_trace_that_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "plugins").touch()  # where the profiler wants a folder
    profile = Profile(1, 2, tmp_path)
    start = TrainState(jnp.int32(0), jnp.ones((64, 64)), ())
    Trainer(Matmul(), Nothing(), steps=4, hooks=[profile]).fit(start)
    assert profile.failure is not None
    assert profile.failure.startswith(f"the trace in {tmp_path} cannot be written: ")
