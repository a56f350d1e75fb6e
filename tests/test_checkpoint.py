import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rubric_jax import checkpoint, config, sharding

CONFIG = {"train": {"steps": 10, "best_metric": "accuracy", "best_mode": "max"}}
RULES = ((r".*kernel", P("fsdp", "tensor")), (r".*", P()))


def make_state(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "decoder": {"kernel": jax.random.normal(keys[0], (8, 4), jnp.bfloat16)},
        "head": {"bias": jax.random.normal(keys[1], (4,))},
        "vision": None,
    }
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "loss_state": {"baseline": jnp.float32(np.float32(0.1))},
        "step": jnp.int32(7),
    }


def put(state, mesh):
    return jax.device_put(state, sharding.place(mesh, RULES, state)[0])


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def save(manager, step, state=None, **kwargs):
    state = {"params": {"w": jnp.full((2,), step)}} if state is None else state
    return manager.save(step, state, position={"next": step}, config=CONFIG, **kwargs)


def test_a_state_comes_back_bit_for_bit_onto_another_mesh(tmp_path):
    state = put(make_state(), sharding.make(config.Mesh(data=1, fsdp=4, tensor=2)))
    with checkpoint.Manager(tmp_path, keep=1) as manager:
        save(manager, 7, state)
    there = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    target = abstract(put(make_state(1), there))
    with checkpoint.Manager(tmp_path, keep=1) as manager:
        assert manager.latest() == 7
        restored, position = manager.restore(target)
    assert position == {"next": 7}
    assert_same(restored, state)
    kernel = restored["opt_state"][0].mu["decoder"]["kernel"]
    assert kernel.sharding == jax.NamedSharding(there, P("fsdp", "tensor"))


def test_a_checkpoint_holds_the_state_of_its_step_although_the_next_steps_donate_it(tmp_path):
    update = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    state = {"params": {"w": jnp.zeros((1000, 1000))}}
    with checkpoint.Manager(tmp_path, keep=3) as manager:
        for step in range(6):
            if step % 2 == 0:
                save(manager, step, state)
            state = update(state)
        manager.wait()
        for step in (0, 2, 4):
            w = manager.restore({"params": {"w": np.zeros((1000, 1000), np.float32)}}, step)[0]
            np.testing.assert_array_equal(w["params"]["w"], step)


def test_the_newest_and_the_best_are_kept(tmp_path):
    accuracy = {1: 0.9, 2: 0.2, 3: float("nan"), 4: 0.8, 5: 0.1, 6: None, 7: 0.3}
    with checkpoint.Manager(tmp_path, keep=2, keep_best=2) as manager:
        for step, value in accuracy.items():
            save(manager, step, metrics=None if value is None else {"accuracy": value}, wait=True)
        assert manager.steps() == [1, 4, 6, 7]
    with checkpoint.Manager(tmp_path, keep=2, keep_best=2) as manager:  # metrics are on disk
        save(manager, 8, metrics={"accuracy": 0.85}, wait=True)
        assert manager.steps() == [1, 7, 8]


def test_with_mode_min_the_smallest_is_best(tmp_path):
    manager = checkpoint.Manager(tmp_path, keep=1, keep_best=1, best_metric="loss", best_mode="min")
    with manager:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
            save(manager, step, metrics={"loss": loss, "accuracy": loss}, wait=True)
        assert manager.steps() == [1, 3]


def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path):
    with checkpoint.Manager(tmp_path, keep=1, keep_best=1) as manager:
        for step, accuracy in ((1, float("nan")), (2, 0.5), (3, float("inf")), (4, 0.1)):
            save(manager, step, metrics={"accuracy": accuracy}, wait=True)
        assert manager.steps() == [2, 4]


def test_without_best_the_newest_alone_are_kept(tmp_path):
    with checkpoint.Manager(tmp_path, keep=2) as manager:
        for step in range(4):
            save(manager, step, metrics={"accuracy": -step}, wait=True)
        assert manager.steps() == [2, 3]


def test_a_step_that_is_there_is_left_alone(tmp_path):
    with checkpoint.Manager(tmp_path, keep=2) as manager:
        assert save(manager, 3)
        assert not save(manager, 3, {"params": {"w": jnp.zeros((2,), jnp.int32)}})
        manager.wait()
    np.testing.assert_array_equal(checkpoint.params(tmp_path)["w"], [3, 3])


def test_parameters_are_read_alone_by_step_latest_or_best(tmp_path):
    checkpoint.claim(tmp_path, CONFIG)
    with checkpoint.Manager(tmp_path, keep=9) as manager:
        for step, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6)):
            save(manager, step, metrics={"accuracy": accuracy})
    for step, expected in ((None, 3), (1, 1), ("best", 2)):
        np.testing.assert_array_equal(checkpoint.params(tmp_path, step)["w"], [expected] * 2)


def test_parameters_are_read_onto_shardings(tmp_path):
    state = put(make_state(), sharding.make(config.Mesh()))
    with checkpoint.Manager(tmp_path, keep=1) as manager:
        save(manager, 1, state)
    assert_same(checkpoint.params(tmp_path)["decoder"], state["params"]["decoder"])
    target = put(make_state(1), sharding.make(config.Mesh(fsdp=2)))["params"]
    params = checkpoint.params(tmp_path, abstract=abstract(target))
    assert_same(params, state["params"])
    assert params["decoder"]["kernel"].sharding == target["decoder"]["kernel"].sharding


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="No checkpoints in"):
        checkpoint.params(tmp_path)
    with checkpoint.Manager(tmp_path, keep=1) as manager:
        with pytest.raises(ValueError, match=r"No checkpoint in .* it has none"):
            manager.restore({})
        save(manager, 3, wait=True)
        with pytest.raises(ValueError, match=r"No checkpoint of step 4 in .* it has \[3\]"):
            manager.restore({}, 4)
    checkpoint.claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="has the metric 'accuracy'"):
        checkpoint.params(tmp_path, "best")


def test_a_state_of_another_model_is_refused_leaf_by_leaf(tmp_path):
    with checkpoint.Manager(tmp_path, keep=1) as manager:
        save(manager, 1, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2), "c": jnp.zeros(1)}, wait=True)
        other = {"a": np.zeros((3, 2)), "b": np.zeros(2, np.int32), "d": np.zeros(1)}
        with pytest.raises(ValueError, match="does not fit") as error:
            manager.restore(other)
    for line in (
        "missing d",
        "surplus c",
        "a is float32 (2, 3), expected float64 (3, 2)",
        "b is float32 (2,), expected int32 (2,)",
    ):
        assert line in str(error.value)


def test_a_typed_random_key_is_refused_by_name(tmp_path):
    with (
        checkpoint.Manager(tmp_path, keep=1) as manager,
        pytest.raises(ValueError, match="'rng' is a typed random key"),
    ):
        save(manager, 1, {"rng": jax.random.key(0)})


KILLED = """
    import sys
    import jax.numpy as jnp
    from rubric_jax import checkpoint
    with checkpoint.Manager(sys.argv[1], keep=3) as manager:
        for step in (1, 2):
            state = {"params": {f"w{i}": jnp.full((1000, 1000), step) for i in range(12)}}
            manager.save(step, state, position={"next": step}, config={}, wait=step == 1)
            print("saving", step, flush=True)
        manager.wait()
"""


def test_a_save_cut_short_by_sigkill_leaves_the_one_before_usable(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    run = subprocess.Popen(
        [sys.executable, script, tmp_path / "run"], env=environment, stdout=subprocess.PIPE
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    try:
        for line in run.stdout:
            if line == b"saving 2\n":
                break
        deadline = time.time() + 30
        while not list(checkpoints.glob("2*")) and time.time() < deadline:
            time.sleep(0.001)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints.glob("2*")] == ["2.orbax-checkpoint-tmp"]
    with checkpoint.Manager(tmp_path / "run", keep=3) as manager:
        assert manager.steps() == [1]
        target = {"params": {f"w{i}": np.zeros((1000, 1000), np.int32) for i in range(12)}}
        state, position = manager.restore(target)
        assert position == {"next": 1}
        assert all((w == 1).all() for w in state["params"].values())
        save(manager, 3, wait=True)
        assert manager.steps() == [1, 3]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "3"]


def full_config(**groups):
    values = config.to_dict(config.Config())
    for group, fields in groups.items():
        values[group] = {**values[group], **fields}
    return values


def test_a_work_directory_is_made_and_claimed_again_by_the_same_config(tmp_path):
    workdir = tmp_path / "deep" / "run"
    assert checkpoint.claim(workdir, full_config()) == []
    assert checkpoint.claim(workdir, full_config()) == []
    written = json.loads((workdir / "config.json").read_text())
    assert config.to_dict(config.build(written)) == full_config()
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_work_directory_of_another_config_is_refused_with_the_difference_shown(tmp_path):
    before = full_config(train={"steps": 10})
    checkpoint.claim(tmp_path, before)
    other = full_config(train={"steps": 20, "log_every": 1}, data={"axes": ("grounding",)})
    with pytest.raises(ValueError, match="belongs to another config") as error:
        checkpoint.claim(tmp_path, other)
    assert "train.steps: 10 -> 20" in str(error.value)
    assert "data.axes" in str(error.value)
    assert "--workdir" in str(error.value)
    assert "log_every" not in str(error.value)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 10
    lines = checkpoint.claim(tmp_path, other, force=True)
    assert len(lines) == 3
    assert checkpoint.claim(tmp_path, other) == []


def test_fields_that_do_not_change_what_is_learned_may_differ(tmp_path):
    checkpoint.claim(tmp_path, full_config())
    other = full_config(train={"log_every": 1, "keep": 5}, mesh={"fsdp": 2}, data={"workers": 3})
    lines = checkpoint.claim(tmp_path, other)
    assert sorted(line.split(":")[0] for line in lines) == [
        "data.workers",
        "mesh.fsdp",
        "train.keep",
        "train.log_every",
    ]
    assert checkpoint.claim(tmp_path, other) == []


def test_every_harmless_field_exists():
    fields = [
        f"{group}.{field}"
        for group, values in full_config().items()
        if isinstance(values, dict)
        for field in values
    ]
    for pattern in checkpoint.HARMLESS:
        head, _, names = pattern.partition(r"\.")
        for name in names.strip("()").split("|"):
            assert name == ".*" or f"{head}.{name}" in fields


def test_a_config_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        checkpoint.claim(tmp_path, full_config())


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"Cannot write to {tmp_path}/file/run: Not a directory"):
        checkpoint.claim(tmp_path / "file" / "run", full_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_work_directory_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        checkpoint.claim(tmp_path, full_config())
    with pytest.raises(ValueError, match="Permission denied"):
        checkpoint.Manager(tmp_path, keep=1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_named_whoever_notices(code):
    """The system says so by an OSError, the array writer in the text of a ValueError."""
    written = f"RESOURCE_EXHAUSTED: Failed to write 10 bytes [os_error_code='{code}']"
    for error in (OSError(code, os.strerror(code), "x"), ValueError(written)):
        with (
            pytest.raises(ValueError, match=f"Cannot write to RUN: {os.strerror(code)}"),
            checkpoint.disk_errors("RUN"),
        ):
            raise error


def test_other_errors_pass_unchanged():
    with pytest.raises(ValueError, match=r"^loss is not finite$"), checkpoint.disk_errors("RUN"):
        raise ValueError("loss is not finite")


def test_a_checkpoint_that_does_not_fit_on_the_disk_says_so_and_harms_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    with checkpoint.Manager(tmp_path, keep=2) as manager:
        save(manager, 1, wait=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        manager = checkpoint.Manager(tmp_path, keep=2)
        noise = jax.random.normal(jax.random.key(0), (1_000_000,))
        with pytest.raises(ValueError, match=f"Cannot write to {tmp_path}: File too large"):
            save(manager, 2, {"params": {"w": noise}}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with checkpoint.Manager(tmp_path, keep=2) as manager:
        assert manager.steps() == [1]


def test_sigterm_becomes_a_flag_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with checkpoint.Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached()
        assert preemption.received == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_first_sigint_is_a_flag_and_the_second_interrupts():
    # A shell's background job starts with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice():
    with checkpoint.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
