"""Restoring a state of 1 GB holds no second copy of it."""

import pytest
from checkpoint import restore_memory

CONSTANT = 500  # MB: read-ahead, compiling, threads; 120 to 230 alone, up to 360 on busy cores


@pytest.mark.slow
def test_restoring_takes_little_beside_the_state(tmp_path):
    for layout, megabytes in restore_memory.main(str(tmp_path)).items():
        assert megabytes["state"] > 1000
        peak, shard = megabytes["peak beside the state"], megabytes["largest shard"]
        assert peak <= 1.3 * shard + CONSTANT, (layout, megabytes)
