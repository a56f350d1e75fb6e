import os
import pathlib
import socket
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import PartitionSpec as P

from rubric_jax import config, paths, sharding, types

RULES = (
    (r".*/q/kernel", P(None, "fsdp", "tensor")),
    (r".*/up/kernel", P(None, "fsdp", "tensor")),
    (r".*/bias", P()),
)
Q, UP = "decoder/layers/attn/q/kernel", "decoder/layers/mlp/up/kernel"


class State(NamedTuple):
    params: Any
    opt_state: Any
    loss_state: Any
    step: Any


def make_params():
    return {
        "decoder": {
            "layers": {
                "attn": {"q": {"kernel": jnp.ones((2, 8, 4, 4)), "bias": jnp.ones((2, 4, 4))}},
                "mlp": {"up": {"kernel": jnp.ones((2, 8, 16))}},
            }
        },
        "vision": None,  # a part that `paths.split` took away
    }


def make_state(tx):
    params = make_params()
    return State(params, tx.init(params), {"bco": {"baseline": jnp.zeros(())}}, jnp.zeros(()))


def test_sizes_of_minus_one_take_the_devices_that_are_left():
    assert dict(sharding.make(config.Mesh()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = sharding.make(config.Mesh(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sharding.data_shards(mesh) == 4


def test_a_mesh_can_be_made_over_some_of_the_devices():
    mesh = sharding.make(config.Mesh(tensor=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (config.Mesh(fsdp=3), ("config.mesh.fsdp=3", "8 device(s)", "3 does not divide 8")),
        (config.Mesh(data=2), ("config.mesh.data=2", "8 device(s)", "2 is not 8")),
        (config.Mesh(data=-1, tensor=-1), ("config.mesh.tensor=-1", "one axis")),
        (config.Mesh(fsdp=0), ("config.mesh.fsdp=0", "at least 1")),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(mesh, words):
    with pytest.raises(ValueError, match="device") as error:
        sharding.make(mesh)
    assert all(word in str(error.value) for word in words)


def test_adamw_moments_follow_their_parameters():
    specs = paths.flatten(sharding.specs(RULES, make_state(optax.adamw(1e-3))))
    assert specs["opt_state/0/count"] == specs["loss_state/bco/baseline"] == specs["step"] == P()
    for tree in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        assert specs[f"{tree}/{Q}"] == P(None, "fsdp", "tensor")
        assert specs[f"{tree}/decoder/layers/attn/q/bias"] == P()


def test_lion_moments_follow_their_parameters():
    specs = paths.flatten(sharding.specs(RULES, make_state(optax.lion(1e-3))))
    assert specs[f"opt_state/0/mu/{UP}"] == P(None, "fsdp", "tensor")


def test_muon_moments_follow_their_parameters_in_both_of_its_parts():
    weights = optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))

    def dimensions(params):
        return paths.map_named(lambda path, _: weights if path == UP else None, params)

    tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=dimensions)
    specs = paths.flatten(sharding.specs(RULES, make_state(tx)))
    moments = {path: spec for path, spec in specs.items() if "/mu/" in path}
    muon, adam = "opt_state/inner_states/muon", "opt_state/inner_states/adam"
    assert moments.pop(f"{muon}/inner_state/0/mu/{UP}") == P(None, "fsdp", "tensor")
    assert moments.pop(f"{adam}/inner_state/0/mu/{Q}") == P(None, "fsdp", "tensor")
    assert list(moments) == [f"{adam}/inner_state/0/mu/decoder/layers/attn/q/bias"]


def test_factored_moments_keep_the_spec_of_the_axes_they_keep():
    """adafactor of [2, 8, 16] keeps a mean over 16, [2, 8], and one over 8, [2, 16]."""
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=4)
    specs = paths.flatten(sharding.specs(RULES, make_state(tx)))
    assert specs[f"opt_state/0/v_row/{UP}"] == P(None, "fsdp")
    assert specs[f"opt_state/0/v_col/{UP}"] == P(None, "tensor")
    assert specs[f"opt_state/0/v/{UP}"] == P()  # a placeholder of shape [1]
    # [2, 8, 4, 4] without one of its 4s could be either: replicated.
    assert specs[f"opt_state/0/v_row/{Q}"] == P(None, "tensor")  # 8 is gone, which is plain
    assert specs[f"opt_state/0/v_col/{Q}"] == P()


def test_masked_parameters_have_no_specs_and_the_rest_keep_theirs():
    mask = {"decoder": {"layers": {"attn": True, "mlp": False}}, "vision": None}
    state = make_state(optax.masked(optax.adamw(1e-3), mask))
    specs = paths.flatten(sharding.specs(RULES, state))
    assert specs[f"opt_state/inner_state/0/mu/{Q}"] == P(None, "fsdp", "tensor")
    assert f"opt_state/inner_state/0/mu/{UP}" not in specs
    assert jax.tree.structure(sharding.specs(RULES, state)) == jax.tree.structure(state)


def test_a_moment_follows_the_parameter_with_the_longest_path_it_ends_with():
    w = jnp.ones((4, 4))
    rules = ((r"kernel", P("tensor")), (r"up/kernel", P("fsdp")))
    tree = {"params": {"kernel": w, "up": {"kernel": w}}, "mu": {"kernel": w, "up": {"kernel": w}}}
    specs = sharding.specs(rules, tree)
    assert specs["mu"] == specs["params"] == {"kernel": P("tensor"), "up": {"kernel": P("fsdp")}}


def test_specs_of_bare_parameters_equal_those_within_a_state():
    params = make_params()
    assert sharding.specs(RULES, params) == sharding.specs(RULES, {"params": params})["params"]


def test_a_parameter_without_a_rule_is_named_with_its_shape_and_the_place_for_one():
    params = {"blocks": {"gate": {"kernel": jnp.ones((3, 2))}}}
    with pytest.raises(ValueError, match="No partition rule matches 'blocks/gate/kernel'") as error:
        sharding.specs(RULES, params)
    assert "(3, 2)" in str(error.value)
    assert "rubric_jax/models" in str(error.value)


def test_a_rule_with_more_entries_than_axes_is_refused():
    with pytest.raises(ValueError, match=r"'a'.*3 entries for the 2 axes of \(3, 2\)"):
        sharding.specs(((".*", P(None, None, "fsdp")),), {"a": jnp.ones((3, 2))})


def test_an_axis_that_does_not_divide_is_dropped_for_that_dimension_and_reported_once():
    mesh = sharding.make(config.Mesh(data=1, fsdp=4, tensor=2))
    rules = ((".*", P("tensor", ("fsdp", "tensor"))),)
    kernel = jax.ShapeDtypeStruct((3, 12), jnp.float32)
    shapes = {"params": {"up": {"kernel": kernel}}, "mu": {"up": {"kernel": kernel}}}
    placed, messages = sharding.place(mesh, rules, shapes)
    # 3 is not a multiple of tensor = 2; 12 is one of fsdp = 4, but not of 4 * 2.
    assert placed["params"]["up"]["kernel"].spec == P(None, "fsdp")
    assert placed["mu"] == placed["params"]
    assert messages == [
        "up/kernel (3, 12): mesh axis 'tensor' (2) does not divide dimension 0 (3); "
        "replicated along it.",
        "up/kernel (3, 12): mesh axis 'tensor' (2) does not divide dimension 1 (12); "
        "replicated along it.",
    ]


def test_a_placed_state_can_be_updated_where_it_lies():
    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    tx = optax.adamw(1e-2)
    state = make_state(tx)
    placed, messages = sharding.place(mesh, RULES, jax.eval_shape(lambda: state))
    assert messages == []

    def step(state):
        updates, opt_state = tx.update(state.params, state.opt_state, state.params)
        return state._replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )

    there = jax.jit(step, in_shardings=(placed,), out_shardings=placed)(
        jax.device_put(state, placed)
    )
    here = jax.jit(step)(state)
    mu = there.opt_state[0].mu["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert mu.addressable_shards[0].data.shape == (2, 4, 8)
    for a, b in zip(jax.tree.leaves(sharding.to_host(there)), jax.tree.leaves(here), strict=True):
        np.testing.assert_array_equal(a, b)


def make_batch(rows):
    count = np.arange(rows, dtype=np.float32)
    return types.Batch(
        prompts=np.arange(rows * 3, dtype=np.int32).reshape(rows, 1, 3),
        prompt_lengths=np.full((rows, 1), 3, np.int32),
        media={"pixels": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)},
        responses=np.zeros((rows, 2, 4), np.int32),
        mask=np.ones((rows, 2, 4), np.float32),
        labels=types.Labels(count[:, None, None] * np.ones((1, 2, 1), np.float32), *[count] * 3),
        ref_logps=None,
    )


def test_a_batch_is_cut_by_rows_along_data_and_fsdp_and_comes_back_whole():
    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    batch = make_batch(8)
    there = sharding.put_batch(batch, mesh)
    assert there.ref_logps is None
    assert there.prompts.sharding == sharding.batch_sharding(mesh)
    assert {shard.data.shape for shard in there.prompts.addressable_shards} == {(2, 1, 3)}
    back = sharding.to_host(there)
    jax.tree.map(np.testing.assert_array_equal, back, batch)


def test_a_batch_that_cannot_be_cut_names_the_batch_size_and_the_multiple_it_needs():
    mesh = sharding.make(config.Mesh(fsdp=2))
    with pytest.raises(ValueError, match=r"'prompts' \(6, 1, 3\).*config.train.batch_size.* = 8"):
        sharding.put_batch(make_batch(6), mesh)


class Device(NamedTuple):
    id: int
    process_index: int


class Mesh(NamedTuple):
    """As much of a mesh as `process_block` reads, with devices of processes that do not run."""

    devices: np.ndarray
    shape: dict

    @classmethod
    def of(cls, processes, shape):
        devices = np.empty(len(processes), object)
        devices[:] = [Device(i, process) for i, process in enumerate(processes)]
        return cls(devices.reshape(shape), dict(zip(sharding.AXES, shape, strict=True)))


@pytest.mark.parametrize(
    ("processes", "shape", "block"),
    [
        ([0, 0, 1, 1], (4, 1, 1), (0, 2)),  # rows 0-1 of 4
        ([1, 1, 0, 0], (4, 1, 1), (1, 2)),  # rows 2-3 of 4
        ([0, 1, 0, 1], (2, 2, 1), (0, 2)),  # rows 0 and 2: still a half of its own
        ([0, 1, 0, 1], (2, 1, 2), (0, 1)),  # tensor spans the processes: both load all rows
        ([0, 0, 1, 1, 2, 2, 3, 3], (2, 1, 4), (0, 2)),
    ],
)
def test_each_process_loads_its_own_block_of_rows(processes, shape, block):
    assert sharding.process_block(Mesh.of(processes, shape)) == block


@pytest.mark.parametrize(
    ("processes", "shape"),
    [([0, 0, 0, 1, 1, 1], (3, 1, 2)), ([0, 0, 0, 1], (4, 1, 1))],
)
def test_processes_with_unequal_or_partly_shared_rows_are_refused(processes, shape):
    with pytest.raises(ValueError, match=r"config\.mesh\.tensor"):
        sharding.process_block(Mesh.of(processes, shape))


def test_initialize_does_nothing_in_a_run_of_one_process():
    sharding.initialize(config.Mesh())
    assert not jax.distributed.is_initialized()


def test_a_distributed_run_that_finds_no_coordinator_names_the_fields(monkeypatch):
    asked = {}

    def initialize(**fields):
        asked.update(fields)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"config\.mesh\.coordinator='', processes=0, process=-1"):
        sharding.initialize(config.Mesh(distributed=True))
    # Whatever the config leaves open is left to jax to find.
    assert asked == {"coordinator_address": None, "num_processes": None, "process_id": None}


TWO_PROCESSES = """
    import signal, sys, os
    import jax, jax.numpy as jnp, numpy as np
    from rubric_jax import checkpoint, config, sharding
    port, process, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    fields = config.Mesh(distributed=True, coordinator=f"127.0.0.1:{port}", processes=2,
                         process=process, fsdp=2)
    sharding.initialize(fields)
    sharding.initialize(fields)  # a second call does nothing
    mesh = sharding.make(fields)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}, mesh
    assert sharding.process_block(mesh) == (process, 2)

    # Rows and groups: each process gives its half and gets the whole back.
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    mine = {"rows": rows[4 * process:][:4], "none": None}
    batch = sharding.put_batch(mine, mesh)
    assert batch["rows"].shape == (8, 3) and batch["none"] is None
    np.testing.assert_array_equal(sharding.to_host(batch)["rows"], rows)
    total = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(batch["rows"])
    assert sharding.to_host(total) == rows.sum()

    # A state cut over both processes is saved by both and read back by both.
    placed = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    state = {"params": {"w": jax.make_array_from_callback((8, 3), placed, lambda i: rows[i])}}
    settings = {"train": {"steps": 3}, "mesh": {"data": 2}}
    checkpoint.claim(workdir, settings)
    with checkpoint.Manager(workdir, keep=1) as manager:
        manager.save(3, state, position={"next": 24}, config=settings)
    with checkpoint.Manager(workdir, keep=1) as manager:
        again, position = manager.restore(state)
    np.testing.assert_array_equal(sharding.to_host(again)["params"]["w"], rows)
    assert position == {"next": 24}
    np.testing.assert_array_equal(checkpoint.params(workdir)["w"], rows)

    # A signal to one process stops both after the same step.
    with checkpoint.Preemption() as preemption:
        for step in range(10):
            if process == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.reached():
                break
    assert preemption.received == ("SIGTERM" if process == 1 else None)
    print("stopped at", step, "devices", jax.device_count())
"""


def test_two_processes_on_loopback_share_batches_checkpoints_and_the_step_to_stop_at(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(script), port]
    runs = [
        subprocess.Popen(
            [*command, str(process), str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(err[-3000:] for _, err in outputs)
    assert [out.splitlines()[-1] for out, _ in outputs] == ["stopped at 5 devices 4"] * 2
