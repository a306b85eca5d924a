"""Hooks of the training loop: what a run does by step besides training."""

from hybrid_jax.hooks.evaluate import Evaluate
from hybrid_jax.hooks.failure import StopOnFailure
from hybrid_jax.hooks.heartbeat import Heartbeat, Patient, Watched
from hybrid_jax.hooks.locate import LocateNonfinite
from hybrid_jax.hooks.profile import Profile
from hybrid_jax.hooks.save import Save
from hybrid_jax.hooks.stop import StopWhenDiverged

__all__ = [
    "Evaluate",
    "Heartbeat",
    "LocateNonfinite",
    "Patient",
    "Profile",
    "Save",
    "StopOnFailure",
    "StopWhenDiverged",
    "Watched",
]
