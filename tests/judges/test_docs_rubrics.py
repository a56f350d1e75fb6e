"""The page on rubrics: what it shows runs, and its tables are complete."""

import pathlib
import re

from rubric_jax import judges, rubrics
from rubric_jax.judges import client

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "rubrics.md").read_text()


def test_the_code_on_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["rewards"].axes.shape == (1, 2, 4)
    assert float(names["rewards"].total[0, 0]) == 1.0


def test_the_page_names_every_judge_aggregation_template_and_field():
    for name in (
        *judges.JUDGES,
        *rubrics.AGGREGATIONS,
        *rubrics.TEMPLATES,
        *rubrics.SCALES,
        *set(client.Server.__dataclass_fields__) - {"model", "base_url"},
        *set(rubrics.Criterion.model_fields) - {"check"},
    ):
        assert f"`{name}`" in PAGE, name
