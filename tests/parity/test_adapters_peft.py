"""Adapters against peft in float32: trained here and read there, and the other way round."""

import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from rubric_jax import paths
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import adapter_files, adapters, lora
from tests.parity import checkpoints, test_families, test_llava

KINDS = {"lora": {}, "rslora": {"rank_stabilised": True}, "dora": {"dora": True}}
TARGETS = (
    (r"(decoder|projector)/.*", True),
    (r"vision/layers/attn/[qv]/kernel", True),
    (r".*", False),
)
SIGNS = np.array([1.0, -0.5])  # another factor per branch, so that both matter


@functools.cache
def base():
    """(directory, vlm, parameters, example) of a random checkpoint."""
    holder = tempfile.TemporaryDirectory(prefix="rubric_jax-tests-")
    _HOLDERS.append(holder)
    model = checkpoints.llava(holder.name, attention_bias=True)
    vlm, params = test_llava.loaded(holder.name)
    return holder.name, vlm, params, test_llava.example(vlm, model)


_HOLDERS: list[tempfile.TemporaryDirectory] = []


@functools.cache
def _pulled():
    _, vlm, params, (*_, batch) = base()

    def pulled(leaves):
        own = adapters.insert(params, leaves)
        h = vlm.hidden(own, batch, test_llava.LAYOUT)
        logps = autoregressive.token_logps(h, vlm.unembed(own), batch.responses, chunk=4)
        return jnp.sum(logps * batch.mask * SIGNS[None, :, None]), logps

    return jax.jit(jax.grad(pulled, has_aux=True))


def theirs(model):
    """(log-probabilities by branch and row, their signed sum) of a torch model."""
    *example, _ = base()[3]
    rows = [test_llava.torch_logps(model, *example, branch) for branch in range(2)]
    return rows, sum(sign * torch.cat(found).sum() for sign, found in zip(SIGNS, rows, strict=True))


def assert_same(ours, rows):
    for n, branch in enumerate(rows):
        for b, row in enumerate(branch):
            np.testing.assert_allclose(ours[b, n, : len(row)], row.detach(), atol=1e-4)


def torch_base():
    return transformers.LlavaForConditionalGeneration.from_pretrained(
        base()[0], attn_implementation="eager", dtype=torch.float32
    ).eval()


def adapter_of(**fields):
    return adapter_files.open_adapter({"targets": TARGETS, **fields}, base()[1])


def begun(adapter, params):
    """Leaves that change nothing yet: random a, zero b, the norms of the kernels."""
    rng, flat, leaves = np.random.default_rng(0), paths.flatten(params), {}
    for site in adapter.sites:
        kernel = np.asarray(flat[f"{site.path}/kernel"])
        n, k = len(site.stack), len(site.inputs)
        size = np.sqrt(np.square(kernel).sum(axis=tuple(range(n, n + k))))
        made = lora.Leaves(
            rng.normal(size=(*site.stack, *site.inputs, adapter.rank)).astype(np.float32),
            np.zeros((*site.stack, adapter.rank, *site.outputs), np.float32),
            np.full(site.stack, adapter.scale, np.float32),
            size if adapter.dora else None,
        )
        leaves |= adapters.leaves_at(site, made)
    return adapters.nest(leaves)


def moved_by_peft(model, directory, vlm):
    """The adapter of a torch model and its leaves after a random move, as peft writes them."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(0.05 * torch.randn(tensor.shape))
    model.save_pretrained(directory)
    adapter = adapter_files.open_adapter({"start": str(directory)}, vlm)
    return adapter, adapter_files.read(adapter, vlm.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trained_here_is_the_same_in_peft(kind, tmp_path):
    _, vlm, params, _ = base()
    adapter = adapter_of(rank=3, alpha=6.0, **KINDS[kind])
    leaves = begun(adapter, params)
    _, first = _pulled()(leaves)
    for _ in range(3):
        grads, _ = _pulled()(leaves)
        trains = paths.map_named(lambda path, _: adapters.trains(path), leaves)
        leaves = jax.tree.map(
            lambda leaf, g, move: leaf + 0.01 * np.sign(g) if move else leaf, leaves, grads, trains
        )
    adapter_files.write(tmp_path, adapter, leaves, vlm.weights, base="base")
    rows, _ = theirs(peft.PeftModel.from_pretrained(torch_base(), tmp_path).eval())
    ours = _pulled()(leaves)[1]
    assert_same(ours, rows)
    assert np.abs(ours - first).max() > 0.1

    # And read back, it is what was written.
    again = adapter_files.open_adapter({"start": str(tmp_path)}, vlm)
    assert again._replace(start="", sites=()) == adapter._replace(sites=())
    assert set(again.sites) == set(adapter.sites)
    found = adapter_files.read(again, vlm.weights)
    for path, leaf in paths.flatten(leaves).items():
        np.testing.assert_array_equal(paths.flatten(found)[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_is_the_same_here(kind, tmp_path):
    _, vlm, _, _ = base()
    names = [vlm.weights.module(m) for site in adapter_of().sites for m in site.modules]
    model = peft.get_peft_model(
        torch_base(),
        peft.LoraConfig(
            r=3,
            lora_alpha=4,
            lora_dropout=0.05,  # nothing while it does not train
            target_modules=names,
            use_rslora=kind == "rslora",
            use_dora=kind == "dora",
        ),
    )
    adapter, leaves = moved_by_peft(model, tmp_path / "adapter", vlm)
    assert (adapter.rank, adapter.alpha) == (3, 4.0)
    grads, ours = _pulled()(leaves)
    rows, total = theirs(model.eval())
    assert_same(ours, rows)

    total.backward()
    adapter_files.write(tmp_path / "grads", adapter, grads, vlm.weights, base="")
    found = safetensors.numpy.load_file(tmp_path / "grads" / adapter_files.TENSORS)
    wanted = {
        name.replace(".default", "").replace("vector.weight", "vector"): p.grad.numpy()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    assert wanted.keys() <= found.keys()
    assert any("vision_tower" in name for name in wanted)
    size = max(np.abs(want).max() for want in wanted.values())
    for name, want in wanted.items():
        scale = max(np.abs(want).max(), 1e-4 * size)
        np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "only 'LORA' is read"),
        ({"bias": "all"}, "bias is 'all', which has no counterpart"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": None}, "is no adapter configuration"),
    ],
)
def test_what_has_no_counterpart_is_refused(change, message, tmp_path):
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **change}
    (tmp_path / adapter_files.CONFIG).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        adapter_files.read_config(tmp_path)


def written(directory, **fields):
    """A tiny adapter on disk, and its tensors."""
    _, vlm, _, _ = base()
    adapter = adapter_of(rank=2, targets=((r"projector/.*", True), (r".*", False)), **fields)
    flat = {}
    for site in adapter.sites:
        a = np.ones((*site.inputs, 2), np.float32)
        b = np.ones((2, *site.outputs), np.float32)
        flat |= adapters.leaves_at(site, lora.Leaves(a, b, np.ones((), np.float32)))
    adapter_files.write(directory, adapter, adapters.nest(flat), vlm.weights, base="")
    return safetensors.numpy.load_file(directory / adapter_files.TENSORS)


def test_the_spelling_of_transformers_4_is_read_too(tmp_path):
    tensors = written(tmp_path)
    old = {name.replace("model.model.", "model."): leaf for name, leaf in tensors.items()}
    assert old.keys() != tensors.keys()
    safetensors.numpy.save_file(old, tmp_path / adapter_files.TENSORS)
    adapter = adapter_files.open_adapter({"start": str(tmp_path)}, base()[1])
    assert len(jax.tree.leaves(adapter_files.read(adapter, base()[1].weights))) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(sorted(t)[0]), r"no lora_a for layer 0 beside .*linear_1"),
        (lambda t: t.update(x=np.ones(2, np.float32)), "x belongs to no layer"),
        (
            lambda t: t.update({sorted(t)[0]: np.ones((2, 5), np.float32)}),
            r"lora_a of projector/up is \[2, 5\], expected \[2, 24\]",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message, tmp_path):
    tensors = written(tmp_path)
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / adapter_files.TENSORS)
    with pytest.raises(ValueError, match=message):
        adapter_files.read(
            adapter_files.open_adapter({"start": str(tmp_path)}, base()[1]), base()[1].weights
        )


def test_fields_that_differ_from_the_start_are_refused(tmp_path):
    written(tmp_path)
    start = {"start": str(tmp_path)}
    with pytest.raises(ValueError, match=r"adapter.rank is 8, but .* was trained with 2"):
        adapter_files.open_adapter({**start, "rank": 8}, base()[1])
    with pytest.raises(ValueError, match=r"targets selects other kernels .*projector/down"):
        adapter_files.open_adapter({**start, "targets": ((r".*", True),)}, base()[1])
    same = adapter_files.open_adapter({**start, "rank": 2}, base()[1])
    anew = adapter_files.open_adapter(adapter_files.anew(start, base()[1]), base()[1])
    assert set(anew.sites) == set(same.sites)
    assert anew.start == ""
    with pytest.raises(ValueError, match="must be a directory by PEFT"):
        adapter_files.open_adapter({"start": str(tmp_path / "no")}, base()[1])


@pytest.mark.parametrize("variant", ["paligemma2", "gemma3", "llava_next", "internvl", "idefics3"])
def test_other_families_are_the_same_in_peft(variant, tmp_path):
    """On every linear layer of the torch model but its head, with random leaves."""
    family, model, _, vlm, params = test_families.both(variant, tmp_path / "base")
    adapter = adapter_files.open_adapter({"rank": 2, "targets": ((".*", True),)}, vlm)
    rng, flat = np.random.default_rng(1), {}
    for path, leaf in paths.flatten(begun(adapter, params)).items():
        noise = 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        flat[path] = leaf if path.endswith("scale") else noise
    leaves = adapters.nest(flat)
    adapter_files.write(tmp_path / "adapter", adapter, leaves, vlm.weights, base="")

    example = test_families.example(family, model)
    batch = test_llava.batch_of(vlm, *example)

    @jax.jit
    def logps(own):
        h = vlm.hidden(own, batch, test_llava.LAYOUT)
        states = h, vlm.unembed(own), batch.responses
        return autoregressive.token_logps(*states, chunk=4, cap=vlm.logit_cap)

    ours, before = logps(adapters.insert(params, leaves)), logps(params)
    linear = sum(isinstance(part, torch.nn.Linear) for part in model.modules()) - 1  # the head
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert sum(hasattr(part, "lora_A") for part in adapted.modules()) == linear

    def theirs():
        return [test_families.torch_logps(family, adapted, *example, n) for n in range(2)]

    assert_same(ours, theirs())
    assert np.abs((ours - before) * batch.mask).max() > 0.1
    _, leaves = moved_by_peft(adapted, tmp_path / "theirs", vlm)
    again = logps(adapters.insert(params, leaves))
    assert_same(again, theirs())
    assert np.abs((again - ours) * batch.mask).max() > 0.01
