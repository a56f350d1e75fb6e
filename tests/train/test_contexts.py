"""Contexts with prompts of their own, and spans, from the file to the loss."""

import json
import math

import jax
import numpy as np
import pytest

from rubric_jax.train import loop, passes, setup
from tests.train import runs

PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}


def rows(count=8):
    with open(runs.root() / "data" / "train.jsonl", encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


def score(name, data, **fields):
    """(scores, source) of rows of data, which lie beside the pictures that they name."""
    path = runs.root() / "data" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    made = setup.build(
        runs.config(data={"path": str(path), **fields}, train={"batch_size": 8}, mesh={"data": -1})
    )
    source = setup.source(made, str(path), "", str(runs.root() / "cache"))
    with jax.set_mesh(made.mesh):
        return passes.score(made, setup.load(made), source), source


def test_a_context_with_its_own_prompt_reads_like_a_row_of_that_prompt():
    data = rows()
    turned = data[1:] + data[:1]
    # Row i is read under the prompt and pictures of row i + 1 too.
    both = [
        {**row, "other_prompt": other["prompt"], "other_images": other["images"]}
        for row, other in zip(data, turned, strict=True)
    ]
    alone = [
        {**row, "prompt": other["prompt"], "images": other["images"]}
        for row, other in zip(data, turned, strict=True)
    ]
    assert any(row["prompt"] != other["prompt"] for row, other in zip(data, turned, strict=True))
    found, source = score("both", both, branches=("chosen", "chosen@other"))
    expected, separate = score("alone", alone, branches=("chosen",))
    np.testing.assert_allclose(found["sums"][:, 1], expected["sums"][:, 0], rtol=1e-5)
    assert not np.allclose(found["sums"][:, 1], found["sums"][:, 0], rtol=1e-3)
    # The reference's log-probabilities are kept under the same keys.
    assert source.prepared.keys(slice(None))[1::2] == separate.prepared.keys(slice(None))


def test_an_objective_needs_the_spans_that_it_names(tmp_path):
    config = runs.config(
        objective={"dpo": {**PAIR, "with": {"spans": {"name": "colour"}}}}, mesh={"data": -1}
    )
    with pytest.raises(ValueError, match=r"spans named 'colour', but no row of .*found: none"):
        loop.train(config, str(tmp_path))


@pytest.mark.slow
def test_a_run_reads_spans_from_its_file(tmp_path):
    """No word has weight, so the loss is log 2 and nothing moves, cached reference or not."""
    data = [{**row, "chosen_spans": [{"start": 0, "end": 1, "weight": 0.0}]} for row in rows()]
    path = runs.root() / "data" / "spans.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    config = runs.config(
        data={"path": str(path), "axes": ()},
        objective={"dpo": {**PAIR, "with": {"spans": {"outside": 0.0}}}},
        train={"batch_size": 8, "steps": 1, "log_every": 1},
        mesh={"data": -1},
    )
    assert loop.train(config, str(tmp_path)).finished
    (line,) = runs.metrics(tmp_path)
    np.testing.assert_allclose(line["loss"], math.log(2), rtol=1e-6)
    assert line["grad_norm"] == 0


def stating(vectors, **data):
    """MODPO on the scenes, each row once per vector, which its prompt states."""
    return runs.config(
        data={"weights": {"draw": "choice", "vectors": vectors, "copies": len(vectors)}, **data},
        objective={"modpo": {**PAIR, "weights": "prompt"}},
        train={"batch_size": 48, "steps": 1, "log_every": 1},
        mesh={"data": -1},
    )


def test_prompts_state_weights_on_every_axis_that_orders_a_pair(tmp_path):
    with pytest.raises(ValueError, match=r"jsonl: axis: Row \d+ is ordered by axis \d.*is 0\.0"):
        loop.train(stating([[1.0, 0.0, 0.0, 0.0], [0.25] * 4]), str(tmp_path))


def test_weights_of_prompts_need_a_draw():
    config = runs.config(objective={"modpo": {**PAIR, "weights": "prompt"}})
    with pytest.raises(ValueError, match=r"the prompts state nothing; set config\.data\.weights"):
        setup.objective(config)


@pytest.mark.slow
def test_the_first_loss_follows_the_weights_that_prompts_state(tmp_path):
    vectors = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    config = stating(vectors.tolist())
    assert loop.train(config, str(tmp_path)).finished
    made = setup.build(config)
    source = setup.source(made, config.data.path, "", str(tmp_path / "cache"))
    expected = []
    for example in source:
        gap = example.rewards[0] - example.rewards[1]
        gap[example.axis] = 0.0
        logit = -(example.preference @ gap) / example.preference[example.axis]
        expected.append(np.log1p(np.exp(-logit)))
    assert len(expected) == 48
    (line,) = runs.metrics(tmp_path)
    np.testing.assert_allclose(line["loss"], np.mean(expected), rtol=1e-5)
