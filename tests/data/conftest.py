import pytest

from rubric_jax.data import processing
from tests.data import toy


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A directory with the toy processor, as transformers 5 saves it."""
    path = tmp_path_factory.mktemp("checkpoint")
    toy.processor().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def processor(checkpoint):
    return processing.load(checkpoint)
