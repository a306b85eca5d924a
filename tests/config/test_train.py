"""What a run may not ask for: each a line with value, constraint and remedy."""

import pytest

from hybrid_jax.config.load import load_config
from hybrid_jax.config.train import TrainConfig
from hybrid_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_skipped": 0}, "train.max_skipped=0 must be a whole number, at least 1."),
        ({"spike_sigmas": 0.0}, "train.spike_sigmas=0.0 must lie in (0, inf)."),
        ({"stall_seconds": -1}, "train.stall_seconds=-1 must lie in (0, 1e9]."),
        (
            {"stall_seconds": "never"},
            "train.stall_seconds='never' must be a number, one of auto or null.",
        ),
        ({"grace_seconds": float("nan")}, "train.grace_seconds=nan must lie in (0, 1e9]."),
        (
            {"wandb_project": ""},
            "train.wandb_project='' must not be empty: give a name, or set it to null.",
        ),
        (
            {"profile_steps": (5, 3), "steps": 20},
            "train.profile_steps=[5, 3] must be [first, last] with 1 <= first <= last <= "
            "train.steps=20: such as [3, 5].",
        ),
        (
            {"profile_steps": (1, 4), "steps": 2},
            "train.profile_steps=[1, 4] must be [first, last] with 1 <= first <= last <= "
            "train.steps=2: such as [2, 2].",
        ),
        (
            {"profile_steps": (3, 5)},
            "train.profile_steps=[3, 5] needs a folder for the trace: set train.output_dir.",
        ),
    ],
)
def test_refused(fields, message):
    with pytest.raises(UserError) as error:
        TrainConfig(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("[3]", [3]), ("[3, 4, 5]", [3, 4, 5]), ("[3, x]", [3, "x"])]
)
def test_profile_steps_are_two_numbers(text, value):
    with pytest.raises(UserError) as error:
        load_config("configs/quickstart.yaml", [f"train.profile_steps={text}"])
    assert str(error.value) == (
        f"train.profile_steps={value!r} must be a list of two whole numbers or null."
    )


def test_profile_steps_from_the_command_line():
    overrides = ["train.profile_steps=[3, 4]", "train.output_dir=runs"]
    assert load_config("configs/quickstart.yaml", overrides).train.profile_steps == (3, 4)
