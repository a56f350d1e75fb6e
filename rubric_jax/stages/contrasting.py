"""config.sample.contrast: what the policy is set against while it answers.

  {"contrast": "vcd", "alpha": 1.0, "context": {"corruption": "diffusion_noise", "step": 500}}
  {"contrast": "m3id", "context": {"corruption": "drop"}}                 the same without pictures
  {"contrast": "vcd", "alpha": 0.5, "plausible": 0.0, "checkpoint": DIR}  another policy: DCD

contrast     a function of contrasts.py, with its knobs
context      a corruption of the pictures, as in config.data.contexts but for `when` "step"; none =
             they stay as they are
checkpoint   the other policy, of the same architecture, without config.model.adapter; none = the
             policy itself
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rubric_jax import config as config_lib
from rubric_jax import contrasts, sampling, sharding, types
from rubric_jax.data import corruptions, loading
from rubric_jax.models import adapters, weights
from rubric_jax.train import setup as setup_lib

CONTEXT = "contrast"  # its name beside `clean`
LAYOUT = types.Layout((types.CLEAN, CONTEXT), (), ())


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """A parsed config."""

    function: Callable
    knobs: Mapping[str, float]
    context: Mapping[str, Any]
    checkpoint: str


def parse(values: Mapping[str, Any], where: str = "config.sample.contrast") -> Spec | None:
    """None where nothing is contrasted.

    Raises:
      ValueError: an unknown contrast, knob or corruption, a knob's value, or nothing to contrast
        with.
    """
    if not values:
        return None
    knobs = dict(values)
    name, context = knobs.pop("contrast", ""), knobs.pop("context", {})
    checkpoint = knobs.pop("checkpoint", "")
    what = f"{where}: contrast"
    function = config_lib.bind(contrasts.CONTRASTS, name, knobs, what=what)
    knobs = config_lib.check(function, knobs, what=f"{what} {name!r}")
    if not isinstance(context, Mapping) or not isinstance(checkpoint, str):
        raise ValueError(
            f"{where}: context is {context!r} and checkpoint {checkpoint!r}; they must be a "
            "corruption, such as {'corruption': 'drop'}, and a directory."
        )
    if not context and not checkpoint:
        raise ValueError(
            f"{where} sets the policy against itself; give a context, such as {{'corruption': "
            "'drop'}, or a checkpoint."
        )
    if context.get("when") == "step":
        raise ValueError(
            f"{where}.context.when is 'step', but answers are sampled outside of training steps; "
            "leave it out: the pictures are then made once."
        )
    try:
        corruptions.bind({CONTEXT: context} if context else {}, LAYOUT)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Spec(function, knobs, context, checkpoint)


def widen(setup: setup_lib.Setup, spec: Spec | None) -> setup_lib.Setup:
    """The setup of prompts with the context, if there is one."""
    if spec is None or not spec.context:
        return dataclasses.replace(setup, layout=types.PROMPTS)
    data = dataclasses.replace(setup.config.data, contexts={CONTEXT: spec.context})
    config = dataclasses.replace(setup.config, data=data)
    return dataclasses.replace(setup, config=config, layout=LAYOUT)


def inputs(setup: setup_lib.Setup, spec: Spec | None) -> dict[str, str]:
    """The other policy, as a manifest names it."""
    if spec is None or not spec.checkpoint:
        return {}
    directory = setup_lib.alike(setup, spec.checkpoint, "config.sample.contrast.checkpoint")
    return {"contrast": weights.fingerprint(directory, setup.vlm.weights)}


def sources(source: loading.Source, spec: Spec | None) -> tuple[loading.Source, ...]:
    """What is read under the pictures as they are, and then under the others, if any."""
    if spec is None or not spec.context:
        return (source,)
    return tuple(dataclasses.replace(source, only=m) for m in range(len(LAYOUT.contexts)))


def other_params(setup: setup_lib.Setup, spec: Spec | None, params: types.Params) -> types.Params:
    """Of the policy that the first is set against."""
    if spec is None or not spec.checkpoint:
        return params
    directory = setup_lib.alike(setup, spec.checkpoint, "config.sample.contrast.checkpoint")
    if directory == setup.directory:  # under an adapter, its base
        return adapters.without(params) if setup.adapter else params
    return setup_lib.load(setup.base, directory)


def against(
    setup: setup_lib.Setup, spec: Spec | None, placed: types.Batch, others, params: types.Params
) -> sampling.Against | None:
    """What the sampler reads.

    Args:
      placed: the batch on the mesh.
      others: batches of the further sources, on the host: one or none.
      params: of the other policy.
    """
    if spec is None:
        return None
    batch = sharding.put_batch(others[0], setup.mesh) if others else placed
    return sampling.Against(spec.function, spec.knobs, batch, params)
