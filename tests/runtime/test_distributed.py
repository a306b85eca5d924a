"""What the environment says of other processes, and mistakes in it."""

import pytest

from hybrid_jax import UserError
from hybrid_jax.runtime.distributed import initialize_from_environment

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ADDRESS: "", COUNT: "", INDEX: ""},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, before its srun
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_joins_nobody(environment):
    assert initialize_from_environment(environment) == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({COUNT: "2", INDEX: "0"}, f"{COUNT} and {INDEX} set without {ADDRESS}: .* all three"),
        ({ADDRESS: "a:1"}, f"{ADDRESS} set without {COUNT} and {INDEX}: .* one process needs none"),
        ({ADDRESS: "a:1", COUNT: "2", INDEX: "2"}, f"{INDEX}=2 with {COUNT}=2: .* numbered from 0"),
        ({ADDRESS: "a:1", COUNT: "two", INDEX: "0"}, "numbered from 0"),
        ({ADDRESS: "a:1", COUNT: "2", INDEX: "-1"}, "numbered from 0"),
        ({ADDRESS: "a", COUNT: "2", INDEX: "0"}, f"{ADDRESS}=a: give host and port"),
        ({COUNT: "4", "SLURM_STEP_NUM_TASKS": "2"}, f"{COUNT} set without"),
    ],
)
def test_half_set_variables_are_a_mistake(environment, message):
    with pytest.raises(UserError, match=message) as caught:
        initialize_from_environment(environment)
    assert "\n" not in str(caught.value)
