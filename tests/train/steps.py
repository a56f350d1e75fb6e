"""The compiled step on toy models and random batches: the real one, without files."""

import dataclasses
import functools
import pathlib
import types as types_lib

import jax
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import objectives, sharding, types
from rubric_jax.models import heads as heads_lib
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib
from tests import toys

PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
DPO = {"dpo": PAIR}
# An eps this large makes Adam's update all but proportional to the gradient, so that comparing
# parameters compares gradients, and rounding near 0 is not blown up to the size of the others.
OPTIMIZER = config_lib.Optimizer(
    learning_rate=0.5,
    schedule="constant",
    warmup=0.0,
    clip=0.0,
    weight_decay=0.1,
    decay=((r".*", 1.0),),
    knobs={"eps": 1.0},
)


class Tokenizer:
    """64 tokens, of which every fifth holds a line break."""

    def __len__(self):
        return 64

    def batch_decode(self, rows):
        return ["\n" * (ids[0] % 5 == 0) for ids in rows]


class Processor:
    """What a step asks of one: the toy pictures are normal noise, black is -2 and white 2."""

    hf = types_lib.SimpleNamespace(tokenizer=Tokenizer())

    def picture(self, image):
        return types.Picture(np.asarray(image, np.float32) / 255 * 4 - 2, image.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A step on a mesh of the first devices."""

    setup: setup_lib.Setup
    objective: objectives.Objective
    functions: loop.Functions

    def start(self, seed=0):
        with jax.set_mesh(self.setup.mesh):
            state = self.functions.start(self.params(seed))
            moves = self.functions.state.ref is not None
            return state._replace(ref=self.params(seed)) if moves else state

    def params(self, seed=0):
        params = _initial(seed)
        if self.setup.vlm.heads:
            own = heads_lib.init(self.setup.vlm.heads, jax.random.key(seed), 32)
            params = {**params, heads_lib.FOLDER: own}
        return jax.device_put(params, self.setup.placement[0])

    def step(self, state, batch, *, knobs=None, ref_params=None):
        knobs = self.objective.knobs if knobs is None else knobs
        with jax.set_mesh(self.setup.mesh):
            placed = sharding.put_batch(batch, self.setup.mesh)
            return self.functions.step(state, placed, knobs, ref_params)

    def run(self, batch, *, steps=1, ref_params=None, seed=0):
        """(state, metrics of the last step), as NumPy arrays."""
        state = self.start(seed)
        for _ in range(steps):
            state, metrics = self.step(state, batch, ref_params=ref_params)
        return jax.device_get((state, metrics))


@functools.cache
def _initial(seed):
    return jax.device_get(jax.jit(toys.llava.build(toys.HF).init)(jax.random.key(seed)))


def case(
    spec,
    *,
    mesh=(1, 1, 1),
    branches=("chosen", "rejected"),
    axes=("a", "b"),
    accumulate=1,
    dtype="float32",
    remat="none",
    attention="auto",
    trainable=((r".*", True),),
    reference="cache",
    contexts=None,
    updates=0,
    heads=None,
    **train,
):
    layout = types.Layout.of(branches)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    config = config_lib.Config(
        model=config_lib.Model(**compute, logps_chunk=6, heads=heads or {}),
        data=config_lib.Data(branches=branches, axes=axes, contexts=contexts or {}),
        objective=spec,
        optimizer=dataclasses.replace(OPTIMIZER, trainable=trainable),
        train=config_lib.Train(accumulate=accumulate, reference=reference, **train),
        mesh=config_lib.Mesh(**dict(zip(sharding.AXES, mesh, strict=True))),
        online=config_lib.Online(updates=updates),
    )
    setup = setup_lib.Setup(
        config=config,
        directory=pathlib.Path(),
        vlm=heads_lib.attach(toys.llava.build(toys.HF, **compute), heads or {}),
        processor=Processor(),
        layout=layout,
        mesh=sharding.make(config.mesh, jax.devices()[: int(np.prod(mesh))]),
    )
    objective = setup_lib.objective(config)
    return Case(setup, objective, loop.compile_functions(setup, objective, steps=10))


def batch(case, **kwargs):
    """A random batch whose images are grouped as the case needs them; the rows do not depend on
    the grouping."""
    groups = sharding.data_shards(case.setup.mesh) * case.setup.config.train.accumulate
    axes = len(case.setup.config.data.axes)
    return toys.batch(case.setup.vlm, case.setup.layout, groups=groups, axes=axes, **kwargs)


def without_rows(batch, rows):
    """The batch with these rows as padding: zeros everywhere."""

    def clear(x):
        x = x.copy()
        x[rows] = 0
        return x

    media = {**batch.media, "index": batch.media["index"].copy()}
    media["index"][rows] = -1
    cleared = jax.tree.map(clear, batch._replace(media={}))
    return cleared._replace(media=media)


def without_branch(batch, row, branch):
    mask = batch.mask.copy()
    mask[row, branch] = 0
    return batch._replace(mask=mask)


def assert_close(a, b, *, rtol=2e-4, atol=2e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
