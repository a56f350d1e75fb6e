"""On a CUDA device, against the CPU: JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.train import step as step_lib
from tests import toys

pytestmark = pytest.mark.gpu


@pytest.fixture
def devices():
    try:
        return jax.devices("cuda")[0], jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("no CUDA device, or JAX_PLATFORMS leaves it out")


@pytest.mark.parametrize(
    ("dtype", "attention", "tolerance"),
    [("float32", "auto", 2e-3), ("bfloat16", "auto", 0.15), ("bfloat16", "cudnn", 0.15)],
)
def test_logps_and_gradients_on_gpu_equal_those_on_cpu(devices, dtype, attention, tolerance):
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted"))
    vlm, params = toys.model(dtype=dtype, attention=attention)
    exact, _ = toys.model()
    batch = toys.batch(vlm, layout, response=6)  # cuDNN wants even lengths

    def run(model, device):
        task = step_lib.Task(model, layout, None, 8)

        def loss(params):
            return jnp.sum(step_lib.branch_logps(task, params, batch)) / batch.mask.sum()

        placed = jax.device_put(params, device)
        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(placed))

    gpu, cpu = devices
    (value, grads), (want, wanted) = run(vlm, gpu), run(exact, cpu)
    np.testing.assert_allclose(value, want, rtol=tolerance)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for found, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)
