"""Eight virtual CPU devices, so that sharding is exercised everywhere; set before jax starts.

XLA's optimizer is turned down: tests compile much and compute little.
"""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: a worker takes whole files, and the last one should be short."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
