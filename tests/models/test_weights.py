"""Checkpoint directories: read onto shards, refused when they do not fit, written again."""

import json
import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rubric_jax import config, models, paths, sharding
from rubric_jax.models import llava, shards, weights
from tests import toys

QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
WIDE = toys.HF | {  # 37 MB in float32, its largest tensors 4 MB
    "text_config": toys.HF["text_config"]
    | {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 3}
}


def random_tensors(spec, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {w.name: rng.normal(size=w.shape).astype(dtype) for w in spec.weights}


def save(directory, tensors, *, files=1):
    """Writes tensors as one file, or spread over several with an index."""
    directory.mkdir(exist_ok=True)
    if files == 1:
        safetensors.numpy.save_file(tensors, directory / weights.SINGLE)
        return
    named = {name: f"model-{i % files}.safetensors" for i, name in enumerate(tensors)}
    for file in set(named.values()):
        part = {name: tensors[name] for name in tensors if named[name] == file}
        safetensors.numpy.save_file(part, directory / file)
    (directory / weights.INDEX).write_text(json.dumps({"weight_map": named}))


@pytest.fixture(scope="module")
def vlm():
    return llava.build(toys.HF)


@pytest.fixture(scope="module")
def tensors(vlm):
    return random_tensors(vlm.weights)


def load(directory, vlm, dtype=jnp.float32, **kwargs):
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    return weights.load(directory, vlm.weights, shapes, dtype=dtype, **kwargs)


def assert_equal(a, b):
    a, b = paths.flatten(a), paths.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.mark.parametrize("files", [1, 3, 100])
def test_parameters_are_the_transposed_tensors_whatever_the_files(files, vlm, tensors, tmp_path):
    save(tmp_path, tensors, files=files)
    params = load(tmp_path, vlm)
    attn = params["decoder"]["layers"]["attn"]
    for i in range(2):
        name = f"language_model.model.layers.{i}.self_attn"
        # torch: [heads * size, width] and [width, heads * size]; 4 heads of 8 and width 32
        query, out = tensors[f"{name}.q_proj.weight"], tensors[f"{name}.o_proj.weight"]
        np.testing.assert_array_equal(attn["q"]["kernel"][i], query.T.reshape(32, 4, 8))
        np.testing.assert_array_equal(attn["o"]["kernel"][i], out.T.reshape(4, 8, 32))
    patch = tensors["vision_tower.embeddings.patch_embedding.weight"]  # [width, 3, 8, 8]
    np.testing.assert_array_equal(
        params["vision"]["patch"]["kernel"], np.einsum("ocyx->yxco", patch)
    )
    np.testing.assert_array_equal(
        params["decoder"]["unembedding"], tensors["language_model.lm_head.weight"].T
    )


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_checkpoints_are_widened_and_written_back_bit_equal(stored, vlm, tmp_path):
    tensors = random_tensors(vlm.weights, stored)
    save(tmp_path / "in", tensors, files=2)
    params = load(tmp_path / "in", vlm)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    weights.write(tmp_path / "out", params, vlm.weights, source=tmp_path / "in")
    written = safetensors.numpy.load_file(tmp_path / "out" / weights.SINGLE)
    assert_equal(written, tensors)


def test_parameters_may_be_narrower_than_the_checkpoint(vlm, tensors, tmp_path):
    save(tmp_path, tensors)
    got = load(tmp_path, vlm, jnp.bfloat16)["decoder"]["embedding"]
    want = tensors["language_model.model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, want)


def faulty(tensors, kind):
    tensors = dict(tensors)
    if kind == "missing":
        del tensors[QUERY]
    elif kind == "surplus":
        tensors["language_model.model.layers.2.self_attn.q_proj.weight"] = np.zeros((32, 32))
    elif kind == "misshapen":
        tensors[QUERY] = tensors[QUERY][:16]
    elif kind == "quantised":
        tensors[QUERY] = tensors[QUERY].astype(np.int8)
    elif kind == "twice":
        tensors["model." + QUERY.replace("language_model.model", "language_model")] = tensors[QUERY]
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", rf"missing: {QUERY}"),
        ("surplus", r"surplus: language_model\.model\.layers\.2\.self_attn\.q_proj\.weight"),
        ("misshapen", rf"misshapen: {QUERY} is \[16, 32\], expected \[32, 32\]"),
        ("quantised", rf"not read \(quantised\?\): {QUERY} is I8"),
        ("twice", rf"{QUERY} twice: .* in model-.* and as .* in model-"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(kind, message, vlm, tensors, tmp_path):
    save(tmp_path, faulty(tensors, kind), files=2)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, vlm)


def test_pickled_weights_are_refused_by_name(vlm, tmp_path):
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model-00001-of-00001\.bin hold pickled"):
        load(tmp_path, vlm)


def test_a_directory_without_weights_is_refused(vlm, tmp_path):
    with pytest.raises(ValueError, match=r"No safetensors weights in .*expected model\.safe"):
        load(tmp_path, vlm)


def test_an_index_that_names_a_missing_file_is_refused(vlm, tensors, tmp_path):
    save(tmp_path, tensors, files=3)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"files that are missing: model-1\.safetensors"):
        load(tmp_path, vlm)


def test_an_index_that_names_a_missing_tensor_is_refused(vlm, tensors, tmp_path):
    save(tmp_path, tensors, files=2)
    index = json.loads((tmp_path / weights.INDEX).read_text())
    index["weight_map"]["language_model.gone"] = "model-0.safetensors"
    (tmp_path / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"tensors that no file holds: language_model\.gone"):
        load(tmp_path, vlm)


def test_a_file_that_was_cut_off_is_named(vlm, tensors, tmp_path):
    save(tmp_path, tensors)
    file = tmp_path / weights.SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load(tmp_path, vlm)


def test_buffers_and_a_tied_head_are_passed_over_and_reported(tmp_path):
    vlm = llava.build(toys.HF | {"tie_word_embeddings": True})
    tensors = random_tensors(vlm.weights)
    assert "language_model.lm_head.weight" not in tensors
    extra = {
        "language_model.lm_head.weight": np.zeros((64, 32), np.float32),
        "vision_tower.vision_model.embeddings.position_ids": np.zeros((1, 5), np.int64),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    save(tmp_path, tensors | extra)
    found = weights.tensors(tmp_path, vlm.weights)
    ignored = weights.check(found, vlm.weights, tmp_path)
    assert set(ignored) == {vlm.weights.canonical(name) for name in extra}
    assert ignored["language_model.lm_head.weight"] == "tied to the embedding"
    params = load(tmp_path, vlm)
    np.testing.assert_array_equal(vlm.unembed(params), params["decoder"]["embedding"].T)


def test_loading_onto_a_mesh_equals_loading_onto_one_device(vlm, tensors, tmp_path):
    save(tmp_path, tensors, files=2)
    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    shardings, _ = sharding.place(mesh, vlm.rules, shapes)
    params = load(tmp_path, vlm, shardings=shardings)
    for path, place in paths.flatten(shardings).items():
        assert paths.flatten(params)[path].sharding == place, path
    kernel = params["decoder"]["layers"]["gate"]["kernel"]  # [2, 32, 40], cut 1 x 2 x 2
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 20)}
    assert_equal(params, load(tmp_path, vlm))


def test_a_device_in_host_memory_takes_the_shards_over_uncopied(vlm, tensors, tmp_path):
    save(tmp_path, tensors)
    tracemalloc.start()  # counts NumPy's memory, not that of devices
    params = load(tmp_path, vlm)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held > sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loading_holds_the_model_and_little_more(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_threads", lambda: 2)
    vlm = llava.build(WIDE)
    save(tmp_path, random_tensors(vlm.weights), files=3)
    tracemalloc.start()
    params = load(tmp_path, vlm, dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    blocks = 2 * shards._BLOCK  # what each thread reads at a time
    assert peak < sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + blocks + 3_000_000


@pytest.mark.parametrize(
    ("full", "where"),
    [
        ((6, 4, 2), {"whole": ((0, 6), (0, 4), (0, 2)), "half": ((0, 3), (2, 4), (0, 2))}),
        ((6, 2, 4), {"inside a head": ((0, 6), (0, 2), (1, 3))}),
        ((3, 2, 8), {"whole": ((0, 3), (0, 2), (0, 8))}),
        ((48,), {"merged": ((7, 30),)}),
    ],
)
def test_a_shard_is_its_part_of_the_turned_tensor(full, where, monkeypatch, tmp_path):
    tensor = np.arange(48, dtype=np.float32).reshape(8, 6)
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32), "y": tensor}, tmp_path / "f")
    monkeypatch.setattr(shards, "_BLOCK", 3 * tensor[0].nbytes)  # blocks that cut shards
    (found,) = (t for t in weights._header(tmp_path / "f") if t.name == "y")
    weight = weights.Weight("y", (8, 6), "p", (1, 0))
    for index in where.values():
        target = shards.empty([stop - start for start, stop in index], ml_dtypes.bfloat16)
        weights._fill(found, weight, full, {index: target})
        want = tensor.T.reshape(full)[tuple(slice(*cut) for cut in index)]
        np.testing.assert_array_equal(target, want.astype(ml_dtypes.bfloat16))


def test_rows_that_no_shard_of_this_process_has_are_not_read(monkeypatch, tmp_path):
    tensor = np.arange(48, dtype=np.float32).reshape(12, 4)
    safetensors.numpy.save_file({"x": tensor}, tmp_path / "f")
    found = weights._header(tmp_path / "f")[0]
    read, original = [], shards._read

    def counted(source, raw, start):
        read.append((start - found.start, raw.size))
        original(source, raw, start)

    monkeypatch.setattr(shards, "_read", counted)
    monkeypatch.setattr(shards, "_BLOCK", 2 * tensor[0].nbytes)
    targets = {((a, b), (0, 4)): shards.empty((b - a, 4), np.float32) for a, b in ((2, 4), (8, 9))}
    weights._fill(found, weights.Weight("x", (12, 4), "p", (0, 1)), (12, 4), targets)
    row = tensor[0].nbytes
    assert read == [(2 * row, 2 * row), (8 * row, row)]
    for ((a, b), _), target in targets.items():
        np.testing.assert_array_equal(target, tensor[a:b])


def test_writing_holds_one_file_on_the_host(tmp_path):
    vlm = llava.build(WIDE)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    limit = 6_000_000
    tracemalloc.start()
    count = weights.write(tmp_path, params, vlm.weights, shard_bytes=limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < limit + 50_000
    assert count == len(vlm.weights.weights)
    largest = 4 * max(np.prod(weight.shape) for weight in vlm.weights.weights)
    assert peak < limit + largest + 500_000  # the tensor that no longer fits waits for the next


LOAD = """
import re, sys, jax, jax.numpy as jnp
from rubric_jax import models
from rubric_jax.models import weights

def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", open("/proc/self/status").read())[1])

vlm = models.build("llava", sys.argv[1])
shapes = jax.eval_shape(vlm.init, jax.random.key(0))
jax.jit(lambda x: x + 1)(jnp.zeros(4)).block_until_ready()
before = status("VmRSS")
params = jax.block_until_ready(
    weights.load(sys.argv[1], vlm.weights, shapes, dtype=jnp.bfloat16)
)
print(status("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.sweep
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's memory figures")
def test_loading_600_megabytes_peaks_near_the_size_of_the_model(tmp_path):
    text = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096}
    hf = toys.HF | {"text_config": toys.HF["text_config"] | text | {"num_hidden_layers": 20}}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    spec = models.build("llava", tmp_path).weights
    ones = {w.name: np.ones(w.shape, ml_dtypes.bfloat16) for w in spec.weights}
    save(tmp_path, ones, files=5)
    del ones
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, model = map(int, found.split())
    assert model > 600e6
    # Devices are host memory here. The allowance is for the threads' blocks and the allocator.
    assert grown < model + 17e6 + 120e6


def test_fingerprint_tells_contents_not_files_or_spelling(vlm, tensors, tmp_path):
    save(tmp_path / "one", tensors)
    save(tmp_path / "many", tensors, files=4)
    hub = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensors[name]
        for name in tensors
    }
    buffer = {"vision_tower.vision_model.embeddings.position_ids": np.zeros((1, 5), np.int64)}
    save(tmp_path / "hub", hub | buffer, files=2)
    prints = {weights.fingerprint(tmp_path / d, vlm.weights) for d in ("one", "many", "hub")}
    assert len(prints) == 1


def test_fingerprint_tells_every_entry_of_every_tensor(vlm, tensors, tmp_path):
    save(tmp_path, tensors)
    seen = {weights.fingerprint(tmp_path, vlm.weights)}
    for name in tensors:
        for entry in (tensors[name].size // 2, -1):
            changed = dict(tensors)
            changed[name] = tensors[name].copy()
            changed[name].reshape(-1)[entry] += 1
            save(tmp_path, changed)
            seen.add(weights.fingerprint(tmp_path, vlm.weights))
    assert len(seen) == 1 + 2 * len(tensors)
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    save(tmp_path, half)
    assert weights.fingerprint(tmp_path, vlm.weights) not in seen


def test_export_keeps_the_other_files_and_refuses_its_own_source(vlm, tensors, tmp_path):
    save(tmp_path / "in", tensors, files=3)
    (tmp_path / "in" / "config.json").write_text(json.dumps(toys.HF))
    (tmp_path / "in" / "optimizer.pt").write_bytes(b"pickle")
    params = load(tmp_path / "in", vlm)
    weights.write(tmp_path / "out", params, vlm.weights, source=tmp_path / "in", shard_bytes=20_000)
    weights.write(tmp_path / "out", params, vlm.weights, source=tmp_path / "in")  # over the old
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", weights.SINGLE}
    assert_equal(safetensors.numpy.load_file(tmp_path / "out" / weights.SINGLE), tensors)
    with pytest.raises(ValueError, match="Refusing to export onto the checkpoint"):
        weights.write(tmp_path / "in", params, vlm.weights, source=tmp_path / "in")
