"""The page on recipes: what it shows runs."""

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def test_the_code_on_the_page_runs(capsys):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1]
    names = {}
    exec(code, names)
    row = names["mined"].rows[0]
    assert row.branches == {"chosen": "There are two.", "rejected": "Maybe three."}
    assert row.axis == "correctness"
    assert capsys.readouterr().out == "1 rows from 1 of 1 groups\n"
