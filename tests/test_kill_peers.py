"""A process is killed while all train or save: see kill_peers.py for many such kills."""

import pytest
from kill_peers import WORKER, kill
from processes import finish_processes, start_processes


@pytest.mark.parametrize(("victim", "phase"), [(0, "train"), (1, "save")])
def test_the_others_end_in_one_line(victim, phase):
    trial = kill(victim, phase, 0.1)
    assert trial.is_good, trial
    assert trial.seconds < 30


def test_a_script_that_initializes_jax_distributed_itself(tmp_path):
    arguments = [str(WORKER), str(tmp_path), "initialize=own", "steps=2"]
    groups = [
        start_processes(arguments, 2, 1, own=[["rate=0.1"], [f"rate={rate}"]])
        for rate in ("0.1", "0.2")
    ]
    same, different = map(finish_processes, groups)
    assert [result.returncode for result in same] == [0, 0], same
    for result in different:
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "process 1 has rate=0.2, process 0 has 0.1" in result.stderr
