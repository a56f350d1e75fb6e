"""configs/zoo: every config fits what it names and has its method's property, and those step that
ask something of the step that others do not (in a sweep: every one)."""

import json
import pathlib
import re
import types as types_lib

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import zoo
from rubric_jax import config as config_lib
from rubric_jax import paths, recipes, stages, types
from rubric_jax.data import corruptions, rated, reading
from rubric_jax.rubrics import templates
from rubric_jax.stages import schedule
from rubric_jax.train import setup
from tests.train import steps
from tests.zoo import properties

CONFIGS = zoo.configs()
RUNS = [name for name, module in CONFIGS.items() if "rubric_jax run " in module.__doc__]
ROWS = {name: module.METHOD["row"] for name, module in CONFIGS.items()}


def test_each_of_78_rows_is_there_once():
    assert [row["row"] for row in zoo.methods()] == list(range(1, 79))


def test_the_page_is_up_to_date():
    assert zoo.PAGE.read_text() == zoo.page(zoo.methods()), "run: python -m experiments.zoo"


def test_a_row_that_is_there_twice_is_named(monkeypatch):
    twice = {**CONFIGS, "again": CONFIGS["rpo"]}
    monkeypatch.setattr(zoo, "configs", lambda: twice)
    with pytest.raises(ValueError, match=r"46, 47, 47, 48"):
        zoo.methods()


def test_a_method_that_works_lacks_at_most_what_belongs_to_answering(monkeypatch):
    lacking = {**CONFIGS["rpo"].METHOD, "missing": "a part of the loss"}
    monkeypatch.setattr(zoo, "configs", lambda: {"rpo": types_lib.SimpleNamespace(METHOD=lacking)})
    with pytest.raises(ValueError, match=r"rpo, row 47: .*'when answering: '"):
        zoo.methods()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_objective_fits_the_branches_and_the_docstring_has_the_command(name):
    config = config_lib.build(CONFIGS[name].get_config())
    objective = setup.objective(config)
    schedule.check(config)
    doc = CONFIGS[name].__doc__
    assert f"--config=configs/zoo/{name}.py" in doc
    in_step = objective.needs_kl or (config.online.updates > 0 and objective.needs_reference)
    assert in_step == (config.train.reference == "step")
    assert objective.needs_reference == (config.train.reference != "none")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in RUNS])
def test_a_row_with_the_columns_of_the_docstring_is_all_that_the_run_reads(name, tmp_path):
    config = config_lib.build(CONFIGS[name].get_config())
    text = re.search(r"Columns:\s(.*?)(\n\n|\Z)", CONFIGS[name].__doc__, re.DOTALL).group(1)
    said = set(re.findall(r"\w+", text))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pictures = ["a.png", "a.png"]
    record = {"prompt": "<image><image>What?", "images": pictures}
    record |= {column: pictures for column in said if column.endswith("_images")}
    record |= {column: "<image><image>And?" for column in said if column.endswith("_prompt")}
    record |= {column: [{"start": 0, "end": 4}] for column in said if column.endswith("_spans")}
    record |= {"maps": pictures} if "maps" in said else {}
    record |= {column: 0.5 for column in said & {"margin", "weight"}}
    layout = types.Layout.of(config.data.branches)
    listed = {"response_0", "response_1"} if config.data.rated else set(layout.responses)
    for response in listed:
        assert re.sub(r"_\d+$", "_0", response) in said
        record[response] = f"This is {response}."
        if config.data.rated or (config.data.axes and setup.objective(config).needs_rewards):
            assert re.sub(r"_\d+$", "_0", response) + "_rewards" in said
            record[f"{response}_rewards"] = dict.fromkeys(config.data.axes, 0.5)
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    (row,) = reading.rows(
        str(tmp_path / "rows.jsonl"),
        "train",
        layout=layout,
        axes=config.data.axes,
        contexts=corruptions.bind(config.data.contexts, layout),
        differences=config.data.differences,
        rated=rated.bind(config.data.rated, config.data.axes),
    )
    assert not row.unread
    assert not row.fallback  # every context has pictures or a prompt, made or given
    assert any(row.spans.values()) == bool(setup.objective(config).spans)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_flag_of_the_docstring_is_a_field_that_it_can_set(name):
    for flag in re.findall(r"--config\.([\w.]+)", CONFIGS[name].__doc__):
        place = CONFIGS[name].get_config()
        for part in flag.rstrip(".").split("."):
            assert part in place, flag
            place = place[part]


@pytest.mark.parametrize("name", RUNS)
def test_the_recipe_and_the_rubrics_of_a_pipeline_run_fit(name, tmp_path):
    values = CONFIGS[name].get_config()
    values.pool.path = "instructions.jsonl"
    server = values.judging.judge.get("otherwise") or values.judging.judge
    if server.get("judge") == "openai":
        server.update({"model": "judge", "base_url": "http://localhost:8000/v1"})
    config = config_lib.build(values)
    stages.Run(config, str(tmp_path)).check()
    made = recipes.layout(config.pair.recipe, config.sample.count)
    columns = ("chosen", "rejected") if config.online.updates and not config.data.axes else ()
    assert (*columns, *made) == config.data.branches
    if config.pool.writer["writer"] == "template" and config.judging.judge:
        templates.load(config.pool.writer["template"], axes=config.data.axes)


def test_every_config_has_a_property():
    assert sorted(ROWS.values()) == sorted({**properties.PROPERTIES, **properties.PLAIN})
    assert not properties.PROPERTIES.keys() & properties.PLAIN.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_objective_has_the_property_of_its_method(name):
    properties.PROPERTIES.get(ROWS[name], properties.plain)(CONFIGS[name].get_config())


CASES = {}  # compiled steps: configs whose objectives differ in numbers alone share one


def compiled(config, objective):
    static = [(t.entry, t.name, t.static, t.modifiers) for t in objective.terms]
    heads = sorted(config.model.heads.items())
    parts = (config.data.branches, config.optimizer.trainable, config.train.reference, heads)
    parts += (config.online.updates,)
    key = repr((static, *parts, len(config.data.axes)))
    if key not in CASES:
        CASES[key] = steps.case(
            config.objective,
            branches=config.data.branches,
            axes=config.data.axes or ("a",),
            trainable=config.optimizer.trainable,
            reference=config.train.reference,
            updates=config.online.updates,
            heads=config.model.heads,
        )
    return CASES[key]


def _cases():
    """Every config; a sweep where those before it ask all of the step, its terms aside."""
    seen, cases = set(), []
    for name, module in CONFIGS.items():
        config = config_lib.build(module.get_config())
        objective = setup.objective(config)
        parts = {part for value in config.objective.values() for part in value.get("with", {})}
        parts |= {config.train.reference, repr(config.optimizer.trainable), *config.model.heads}
        parts |= {"online"} if config.online.updates else set()
        parts |= {"spans"} if objective.spans else set()
        parts |= {"kl"} if objective.needs_kl else set()
        cases.append(pytest.param(name, marks=() if parts - seen else pytest.mark.sweep))
        seen |= parts
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("name", _cases())
def test_two_steps_are_finite_and_move_what_is_trainable(name):
    config = config_lib.build(CONFIGS[name].get_config())
    objective = setup.objective(config)
    case = compiled(config, objective)
    ref = case.params(seed=1) if config.train.reference == "step" else None
    batch = steps.batch(case, rows=2, ref=config.train.reference == "cache")
    if objective.spans:
        batch = batch._replace(spans={name: 2.0 * batch.mask for name in objective.spans})
    if config.online.updates:
        batch = batch._replace(behaviour=-np.ones_like(batch.mask))
    state = case.start()
    before = paths.flatten(jax.device_get(state.params))
    for _ in range(2):
        state, metrics = case.step(state, batch, knobs=objective.knobs, ref_params=ref)
    assert np.isfinite(metrics["loss"])
    moved = {
        path
        for path, leaf in paths.flatten(jax.device_get(state.params)).items()
        if np.any(leaf != before[path])
    }
    trains = {path for path in before if paths.lookup(config.optimizer.trainable, path)}
    assert moved
    assert moved <= trains


def test_configs_are_short():
    for path in pathlib.Path("configs/zoo").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path
