"""Eight virtual CPU devices, so that sharding is exercised everywhere; set before jax starts.

XLA's optimizer is turned down: tests compile much and compute little. What one test, worker or
process of a test has compiled, the others find in a cache that lives as long as the session.
"""

import atexit
import gc
import os
import pathlib
import re
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


# Cases that others stand for in `make test`; `make sweep` runs them.
SWEEP = (
    r"test_run\.py::test_two_processes_run_the_pipeline",
    r"test_memory_of_families\.py::test_the_estimate_is_near.*\[((?!llava-)\w+-adapter|(?!llava|gemma3|qwen2)\w+-whole)",
    r"test_online\.py::test_(killed_at_any_time|two_processes_do)",
    r"test_benchmarks\.py::test_a_step_is_timed",
    r"test_pictures\.py::test_conditional_preference_trains",
    r"test_weights\.py::test_loading_600_megabytes",
    r"test_front\.py::test_a_front_of_eight_equals_eight_runs\[mesh[12]",
    r"test_family_runs\.py::test_dpo_trains.*\[(llava_next|idefics3|gemma3)",
    r"test_qwen_runs\.py::test_dpo_trains.*\[qwen2_5",
    r"test_reward_model\.py::test_masks_learn_on_a_mesh",
    r"test_schedule\.py::test_a_round_trains",
    r"test_rows\.py::test_shared_prefix_equals.*\[N[38]_",
    r"test_step\.py::test_(a_mesh_steps_like|accumulated_gradients).*mesh[13]",
)
# The files that take longest: a worker takes whole files, and the last one should be short.
LONG = ("test_run.py", "test_online.py", "test_loop.py", "test_zoo.py", "test_front.py")


def pytest_collection_modifyitems(items):
    """Marks sweeps; files with slow tests first, the longest before them."""
    for item in items:
        if any(re.search(pattern, item.nodeid) for pattern in SWEEP):
            item.add_marker(pytest.mark.sweep)
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONG, item.path not in slow))


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
