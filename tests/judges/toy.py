"""Requests about a scene."""

import functools
import io

from rubric_jax import judges
from rubric_jax.data import scenes
from rubric_jax.judges import oracle
from rubric_jax.rubrics import records


@functools.cache
def image(key):
    buffer = io.BytesIO()
    scenes.draw(next(s for s in _scenes() if s.key == key)).save(buffer, "PNG")
    return buffer.getvalue()


def _scenes():
    i = 0
    while True:
        yield scene(i).scene
        i += 1


@functools.cache
def scene(index=0):
    return scenes.instance(0, index)


def instance(index=0):
    s = scene(index)
    return records.Instance(instruction=s.text, images=(image(s.scene.key),))


def rubric(index=0):
    return oracle.rubric(scene(index), instance(index).key)


def request(index=0, response=None, id=None, **under):
    response = scenes.reference(scene(index)) if response is None else response
    return judges.Request(
        id=id or f"r{index}",
        instance=instance(index),
        response=response,
        rubric=under.get("rubric") or rubric(index),
    )
