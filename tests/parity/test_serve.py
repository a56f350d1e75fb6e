"""The remote judge against `transformers serve`, a server that is not ours."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
import transformers

from rubric_jax import judges
from rubric_jax.data import scenes
from tests.judges import toy

TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ ('user' if m['role'] == 'system' else m['role']) ~ '>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PATIENCE = 240  # seconds until the server has to answer


def write_model(directory):
    """A random toy LLaVA, saved by transformers, whose template takes a system message."""
    scenes.write_processor(directory)
    (pathlib.Path(directory) / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    config = transformers.LlavaConfig.from_pretrained(directory)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(directory)


def start(directory, log):
    """(process, base URL) of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [pathlib.Path(sys.executable).parent / "transformers", "serve", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process, f"http://127.0.0.1:{port}/v1"
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    stop(process)
    raise RuntimeError("transformers serve did not get ready; see its log")


def stop(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_random_model_behind_transformers_serve_gives_no_score_and_replays(tmp_path):
    write_model(tmp_path / "model")
    log_path = tmp_path / "log"
    with open(log_path, "wb") as log:
        process, url = start(tmp_path / "model", log)
    judge = judges.build(
        {
            "judge": "openai",
            "model": str(tmp_path / "model"),
            "base_url": url,
            "reasks": 1,
            "server": {
                "max_tokens": 16,
                "structured": "none",  # it does not constrain its answers
                "concurrency": 2,
                "timeout": 120.0,
                "retries": 0,
            },
        }
    )
    requests = [toy.request(i) for i in range(3)]
    store = judges.Store(str(tmp_path / "verdicts.sqlite"))
    try:
        found, tally = judges.collect(judge, requests, store)
    finally:
        stop(process)
    told = f"{tally.lines()}\n{log_path.read_text()[-3000:]}"
    assert tally.statuses == {"unparsable": 3}, told
    assert tally.usage.calls == 6, told  # each asked again once
    assert tally.usage.completion_tokens > 0, told
    for verdict in found.values():
        assert not verdict.scores
        assert len(verdict.raw) == 2
        assert any(text.strip() for text in verdict.raw)  # what it said is kept
    replayed, tally = judges.collect(judge, requests, store)  # the server is gone
    assert replayed == found
    assert (tally.from_store, tally.judged) == (3, 0)
