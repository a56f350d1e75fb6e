"""Eight virtual CPU devices, so that sharding is exercised everywhere; set before jax starts.

XLA's optimizer is turned down: tests compile much and compute little. What one test, worker or
process of a test has compiled, the others find in a cache that lives as long as the session.
"""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set for workers by the process that starts them
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rubric_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


# The files that take longest: a worker takes whole files, and the last one should be short.
LONG = (
    "test_run.py",
    "test_loop.py",
    "test_zoo.py",
    "test_families.py",
    "test_commands.py",
    "test_front.py",
    "test_qwen.py",
    "test_step.py",
)


def pytest_collection_modifyitems(items):
    """Sweeps are slow, too; files with slow tests first, the longest before them."""
    for item in items:
        if item.get_closest_marker("sweep"):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(LONG)), item.path not in slow))


@pytest.fixture(scope="module", autouse=True)
def _few_mappings():
    """Forgets what was compiled before a worker meets the system's limit of memory mappings.

    Every compiled function maps a few pages; thousands of them in one process end in a crash
    inside a later compilation (vm.max_map_count, 65530 by default).
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
        gc.collect()
