"""Weights & Biases: what is missing is reported; offline it is written for real where installed."""

import importlib.util
import os
import subprocess
import sys
import time

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.metrics.wandb import WandbWriter

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)


def test_without_wandb_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"wandb_project='p' needs .*`pip install wandb`, or set"):
        WandbWriter("p")


@needs_wandb
def test_an_offline_run_and_one_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = set()
    for step in (1, 2):
        writer = WandbWriter("p", config={"steps": 2}, folder=tmp_path)
        writer.write(step, {"loss": 2.5 / step, "grad_norm": float("nan")})
        ids.add(writer._run.id)
        writer.close()
    assert ids == {(tmp_path / "wandb-id.txt").read_text().strip()}

    files = sorted(tmp_path.rglob("*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for path, loss in zip(files, (b"2.5", b"1.25"), strict=True):
        end = time.monotonic() + 30
        while loss not in (content := path.read_bytes()):  # its service writes behind `finish`
            assert time.monotonic() < end
            time.sleep(0.05)
        assert b"loss" in content


@needs_wandb
def test_a_missing_login_is_told(tmp_path):
    code = "from hybrid_jax.metrics.wandb import WandbWriter\nWandbWriter('p', folder='.')"
    names = os.environ.keys() - {"WANDB_API_KEY", "WANDB_MODE"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={name: os.environ[name] for name in names} | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hybrid_jax.errors.UserError: train.wandb_project='p': ")
    assert "`wandb login`" in last
