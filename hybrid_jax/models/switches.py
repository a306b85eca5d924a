"""How a Flax module is told whether it trains, and whether its dropout has heard."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybrid_jax.errors import UserError, nearest

Switches = Mapping[str, bool]

USUAL: Switches = {"train": True, "deterministic": False}
"""The switches of every module, each with the value that it has in training mode."""


def with_usual(switches: Switches | None) -> dict[str, bool]:
    """Returns the user's switches, checked, beside the usual ones."""
    if switches is not None and not isinstance(switches, Mapping):
        raise UserError(
            f"switches={switches!r} must map names to their value in training mode, e.g. "
            "{'is_training': True}."
        )
    for name, value in (switches or {}).items():
        if not isinstance(name, str) or not isinstance(value, bool):
            raise UserError(
                f"switches[{name!r}]={value!r} must be True or False, its value in training mode."
            )
    return {**USUAL, **(switches or {})}


def in_mode(switches: Switches, *, training: bool) -> dict[str, bool]:
    """Returns the switches' values in training mode, or their negations in evaluation mode."""
    return {name: value is training for name, value in switches.items()}


def call_parameters(module: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the module's call, without `self`."""
    return dict(list(inspect.signature(type(module).__call__).parameters.items())[1:])


def check_call(module: Any, num_args: int, told: Iterable[str]) -> None:
    """Raises a UserError unless the module's call takes `num_args` arrays and nothing more."""
    parameters = call_parameters(module)
    try:
        inspect.Signature(list(parameters.values())).bind(*[None] * num_args, **dict.fromkeys(told))
    except TypeError as error:
        raise UserError(
            f"the call of {type(module).__name__} takes ({', '.join(parameters)}), but gets "
            f"{num_args} of the batch's arrays: {error}; name arrays by inputs, and a switch of "
            "training mode by switches."
        ) from None


def check_known(switches: Switches | None, known: Iterable[Iterable[str]], names: str) -> None:
    """Raises a UserError for a switch that no module has; `known` are the ones of each module."""
    names_known = {name for module in known for name in module}
    for name in switches or {}:
        if name not in names_known:
            raise UserError(
                f"switches[{name!r}]: {names} has neither a parameter of its call nor an attribute "
                f"of that name.{nearest(name, names_known)}"
            )


def refuse_silent_dropout(module: str, silent: Sequence[str], candidates: Switches) -> None:
    """Raises a UserError if dropouts are switched off in training mode.

    Args:
      silent: the dropouts, in words.
      candidates: what may be their switches, with the guess of their value in training mode.
    """
    if silent:
        example = dict(candidates) or {"is_training": True}
        raise UserError(
            f"{module} would train without dropout: {', '.join(silent)} draws nothing in training "
            f"mode; name its switch with the value for training, e.g. switches={example}, or set "
            "its rate to 0."
        )


def refuse_random_evaluation(module: str, active: Sequence[str]) -> None:
    """Raises a UserError: random numbers are drawn in evaluation mode."""
    what = f" ({', '.join(active)})" if active else ""
    raise UserError(
        f"{module} draws random numbers in evaluation mode too{what}: make them depend on a "
        "parameter `train` or `deterministic` of its call, or name their switch by switches."
    )
