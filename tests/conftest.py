"""Eight virtual CPU devices for every test, strict promotion and a compilation cache."""

import signal
from pathlib import Path

from hybrid_jax.runtime.cpu import force_cpu_devices

force_cpu_devices(8)

import jax  # noqa: E402  (the flags above must be set before jax starts)
import pytest  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart():
    # A shell starts what runs in its background with SIGINT ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if jax.device_count() != 8:
        raise RuntimeError(f"tests need 8 CPU devices, found {jax.devices()}")


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Records of verified corpora go to a folder of the tests, not to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
