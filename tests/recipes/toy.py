"""Groups from typed-in scores, under one small rubric.

answer   essential   weight 3  correctness        total = (3 answer + style) / 4
style    additional  weight 1  style
"""

from rubric_jax.recipes import groups
from rubric_jax.rubrics import aggregation, records

AXES = ("correctness", "style")

RUBRIC = records.parse(
    {
        "key": "k",
        "criteria": [
            {"id": "answer", "text": "t", "kind": "essential", "weight": 3, "axis": "correctness"},
            {"id": "style", "text": "t", "kind": "additional", "weight": 1, "axis": "style"},
        ],
    },
    where="toy",
)
HOLISTIC = records.parse(
    {
        "key": "k",
        "criteria": [
            {"id": "overall", "text": "t", "kind": "essential", "weight": 1, "axis": "overall"}
        ],
    },
    where="toy",
)


def response(text, scores=None, **fields):
    """scores: (answer, style), (overall,), or None for no verdict."""
    names = {1: ("overall",), 2: ("answer", "style")}
    if scores is not None:
        scores = {n: s for n, s in zip(names[len(scores)], scores) if s is not None}
    return groups.Response(text, scores=scores, **fields)


def scored(*scores, **fields):
    """Responses 'text 0', 'text 1', ... with these scores."""
    return [response(f"text {k}", s, **fields) for k, s in enumerate(scores)]


def item(responses, *, name="g", answer="", reference="", source="", rubric=RUBRIC):
    return {
        "id": name,
        "instruction": "what is it ?",
        "answer": answer,
        "reference": reference,
        "source": source,
        "rubric": rubric,
        "responses": tuple(responses),
    }


def group(responses, *, aggregate=aggregation.weighted_mean, axes=AXES, **fields):
    return groups.build([item(responses, **fields)], axes, aggregate)[0]


def outcomes(*texts, answer="two", **fields):
    return group([response(text) for text in texts], answer=answer, **fields)


def samples(mined):
    """[(chosen, rejected)] by number of response."""
    return [(row.sample["chosen"], row.sample["rejected"]) for row in mined.rows]


def texts(mined):
    return [tuple(row.branches.values()) for row in mined.rows]
