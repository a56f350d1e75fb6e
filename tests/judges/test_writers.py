"""Writers of rubrics by name: what a config can get wrong, before anything runs."""

import pytest

from rubric_jax.data import scenes
from rubric_jax.judges import writers
from rubric_jax.rubrics import records, templates

SERVER = {"writer": "openai", "model": "m", "base_url": "http://x/v1"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"writer": "orcale"}, "Unknown rubric writer 'orcale'.*Did you mean 'oracle'"),
        ({"writer": "template"}, "needs the knob.s. template"),
        ({"writer": "template", "template": 3}, "rubric writer 'template': template is 3"),
        ({"writer": "template", "template": "genral"}, "Did you mean 'general'"),
        ({"writer": "template", "template": "no.yaml"}, "Cannot read the template 'no.yaml'"),
        ({"writer": "openai", "model": "m"}, "needs the knob.s. base_url"),
        (SERVER | {"most": "10"}, "rubric writer 'openai': most is '10'"),
        (SERVER | {"most": 0}, "rubric writer 'openai': most is 0; it must be at least 1"),
        (SERVER | {"reasks": -1}, "reasks is -1; it must be at least 0"),
        (SERVER | {"server": {"retries": "2"}}, "rubric writer 'openai': server: retries is '2'"),
        (SERVER | {"model": ""}, "needs a model and a base_url"),
    ],
)
def test_a_wrong_writer_is_refused_before_anything_runs(spec, message):
    with pytest.raises(ValueError, match=message):
        writers.check(spec, ("correctness",))


def test_a_template_with_other_axes_than_the_run_is_refused():
    spec = {"writer": "template", "template": "general"}
    own = records.axes_of([templates.load("general")])
    writers.check(spec, ())
    writers.check(spec, (*own, "further"))
    with pytest.raises(ValueError, match=f"'general' has criteria for {own[0]}, .*lacks {own[-1]}"):
        writers.check(spec, own[:-1])


def test_the_oracle_needs_the_axes_of_scenes_and_a_model_any():
    writers.check({"writer": "oracle"}, ())
    writers.check({"writer": "oracle"}, scenes.AXES)
    with pytest.raises(ValueError, match="rubric writer 'oracle': it has criteria for"):
        writers.check({"writer": "oracle"}, ("style",))
    writers.check(SERVER, ("style",))
    with pytest.raises(ValueError, match="needs the reward axes"):
        writers.check(SERVER, ())
