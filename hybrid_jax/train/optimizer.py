"""Optimizers from config: an optax transformation with its learning-rate schedule."""

from __future__ import annotations

from typing import Any

import jax
import optax

from hybrid_jax.config.optimizer import OptimizerConfig

PyTree = Any

STACKED = "blocks"  # the subtree whose leaves have a leading layers dim


def make_optimizer(
    config: OptimizerConfig, total_steps: int, axes: PyTree
) -> optax.GradientTransformation:
    """Returns the optax transformation that `config` describes.

    Weight decay acts on matrices only: norms' scales and biases, whose dims per layer are one (or
    a bias's heads), are left alone.

    Args:
      total_steps: length of the run, for schedules that end with it.
      axes: the parameters' logical names, `model.axes()`.
    """
    rate = make_learning_rate(config, total_steps)
    decay, mask = config.weight_decay, decay_mask
    makers = {
        "adamw": lambda: optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=decay, mask=mask
        ),
        "lion": lambda: optax.lion(rate, config.b1, config.b2, weight_decay=decay, mask=mask),
        # Adafactor adds its decay after the learning rate; here it is scaled like AdamW's.
        "adafactor": lambda: optax.adafactor(
            rate, weight_decay_rate=decay * config.learning_rate or None, weight_decay_mask=mask
        ),
        "muon": lambda: optax.contrib.muon(
            rate,
            weight_decay=decay,
            weight_decay_mask=mask,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=muon_dimensions(axes),
            consistent_rms=0.2,  # updates of AdamW's size, so that one learning rate fits both
        ),
    }
    return makers[config.name]()


def make_learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up, then constant, cosine, linear or WSD.

    WSD (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at the peak and falls
    linearly over the last `decay_fraction` of the steps.
    """
    peak, end = config.learning_rate, config.learning_rate * config.end_fraction
    warmup = config.warmup_steps
    rest = max(total_steps - warmup, 1)
    decay = max(round(total_steps * config.decay_fraction), 1)
    phases = {
        "constant": lambda: [(rest, optax.constant_schedule(peak))],
        "cosine": lambda: [(rest, optax.cosine_decay_schedule(peak, rest, config.end_fraction))],
        "linear": lambda: [(rest, optax.linear_schedule(peak, end, rest))],
        "wsd": lambda: [
            (max(rest - decay, 0), optax.constant_schedule(peak)),
            (decay, optax.linear_schedule(peak, end, decay)),
        ],
    }
    lengths, schedules = zip(
        (warmup, optax.linear_schedule(0.0, peak, max(warmup, 1))),
        *phases[config.schedule](),
        strict=True,
    )
    boundaries = [sum(lengths[: index + 1]) for index in range(len(lengths) - 1)]
    return optax.join_schedules(schedules, boundaries)


def decay_mask(params: PyTree) -> PyTree:
    """True for matrices: what is neither a bias nor a vector (per layer)."""

    def is_matrix(path, param):
        name = _names(path)
        return name[-1] != "bias" and param.ndim - (name[0] == STACKED) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def muon_dimensions(axes: PyTree) -> PyTree:
    """Which dims of each parameter Muon treats as the rows and columns of one matrix.

    Block kernels between `embed` and anything else are orthogonalised layer by layer, head dims
    counted as one; None, for embedding, head, norms and biases: AdamW (Jordan et al. 2024).
    """

    def dimensions(path, names):
        if _names(path)[0] != STACKED or "embed" not in names or len(names) < 3:
            return None
        embed = names.index("embed")
        others = tuple(dim for dim in range(1, len(names)) if dim != embed)
        reduction, output = ((embed,), others) if embed == 1 else (others, (embed,))
        return optax.contrib.MuonDimensionNumbers(reduction, output)

    is_names = lambda node: isinstance(node, tuple)
    return jax.tree_util.tree_map_with_path(dimensions, axes, is_leaf=is_names)


def _names(path) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")
