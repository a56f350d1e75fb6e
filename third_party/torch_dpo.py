"""A DPO step in PyTorch, tuned by hand: one side of a comparison (experiments/benchmarks/turns.py).

  python third_party/torch_dpo.py --folder DIR --attention split      DIR as checkpoint.py writes it

It reads the checkpoint with transformers and computes with its modules, but does the work once: a
picture passes through the vision tower once, chosen and rejected stand behind one prefix in one
row, logits exist at response tokens alone, and the reference's log-probabilities are computed
before the first step. Rows must be of equal lengths, as those of checkpoint.py are.

  row            P P P | c c | r r        positions 0 1 2 | 3 4 | 3 4
  --attention    mask    one SDPA over the whole row with an additive float mask
                 split   a causal SDPA over the prefix, and one of both responses over the row
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"))

import PIL.Image
import torch
import torch.nn.functional as F
import transformers
import turns
from transformers.models.llama import modeling_llama

BETA = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="of checkpoint.py")
    parser.add_argument("--attention", choices=("mask", "split"), default="split")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--cuda", action="store_true", help="bfloat16 autocast on a GPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    imported = turns.resident()
    folder, device = pathlib.Path(args.folder), "cuda" if args.cuda else "cpu"
    batch = {name: value.to(device) for name, value in read(folder).items()}
    with torch.no_grad(), autocast(args.cuda):
        reference = logps(load(folder / "reference", device), batch, args.attention)
    model = load(folder / "policy", device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True
    )

    def loss_of(batch):
        with autocast(args.cuda):
            ratios = logps(model, batch, args.attention) - reference  # [2, B]
        return -F.logsigmoid(BETA * (ratios[0] - ratios[1])).mean()

    if args.compile:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # on a GPU this waits for the optimizer, too

    turns.serve(step, {"torch": torch.__version__}, imported=imported)


def autocast(cuda: bool):
    return torch.autocast("cuda", torch.bfloat16, enabled=cuda)


def load(directory: pathlib.Path, device: str) -> transformers.LlavaForConditionalGeneration:
    return transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).to(device)


def read(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """prompt [B, P], responses [2, B, T] (chosen, rejected), pixels [B, 3, H, W]."""
    processor = transformers.AutoProcessor.from_pretrained(folder / "policy")
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    prompts, pixels, responses = [], [], ([], [])
    for row in found:
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
        image = PIL.Image.open(folder / row["images"][0])
        made = processor(images=[image], text=text, add_special_tokens=False, return_tensors="pt")
        prompts.append(made["input_ids"][0])
        pixels.append(made["pixel_values"][0])
        for side, name in enumerate(("chosen", "rejected")):
            whole = processor.apply_chat_template(row["prompt"] + row[name])
            ids = processor.tokenizer(whole.removeprefix(text), add_special_tokens=False)
            responses[side].append(torch.tensor(ids["input_ids"]))
    return {
        "prompt": torch.stack(prompts),
        "responses": torch.stack([torch.stack(side) for side in responses]),
        "pixels": torch.stack(pixels),
    }


def logps(model, batch, attention: str) -> torch.Tensor:
    """log pi(response | prompt), summed over tokens: [2, B]."""
    inner, text = model.model, model.model.language_model
    prompt, responses = batch["prompt"], batch["responses"]
    length, size = prompt.shape[1], responses.shape[2]
    embed = text.embed_tokens
    ids = torch.cat([prompt, *responses], dim=1)  # [B, P + 2T]
    x = embed(ids)
    features = inner.get_image_features(batch["pixels"], return_dict=True).pooler_output
    features = torch.stack(list(features)) if isinstance(features, (list, tuple)) else features
    where = (ids == model.config.image_token_index)[..., None]
    x = x.masked_scatter(where, features.to(x.dtype))
    own = torch.arange(length, length + size, device=x.device)
    positions = torch.cat([torch.arange(length, device=x.device), own, own])[None]
    cos_sin = text.rotary_emb(x, position_ids=positions)
    mask = rule(length, size, x.device, x.dtype)
    attend = {"mask": whole, "split": split}[attention]
    for layer in text.layers:
        h = layer.input_layernorm(x)
        at = layer.self_attn
        q, k, v = (
            linear(h).unflatten(-1, (-1, at.head_dim)).transpose(1, 2)
            for linear in (at.q_proj, at.k_proj, at.v_proj)
        )
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, *cos_sin)
        out = attend(q, k, v, mask.to(q.dtype), length)
        x = x + at.o_proj(out.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    before = torch.cat([predicting(x, length, at, size) for at in (length, length + size)], dim=1)
    logits = model.lm_head(text.norm(before)).float()  # [B, 2T, V]
    flat = torch.cat([*responses], dim=1)
    found = -F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none")
    return found.reshape(-1, 2, size).sum(-1).T


def predicting(x: torch.Tensor, length: int, start: int, size: int) -> torch.Tensor:
    """The states that predict a response: the prefix's last, and the response's but its last."""
    return torch.cat([x[:, length - 1 : length], x[:, start : start + size - 1]], dim=1)


def rule(length: int, size: int, device, dtype) -> torch.Tensor:
    """What sees what, as a float mask [P + 2T, P + 2T]."""
    branch = torch.tensor([0] * length + [1] * size + [2] * size, device=device)
    keep = (branch[None] == 0) | (branch[None] == branch[:, None])
    return torch.where(keep.tril(), 0.0, float("-inf")).to(dtype)


def whole(q, k, v, mask, length: int):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None])


def split(q, k, v, mask, length: int):
    first = (y[:, :, :length] for y in (q, k, v))
    prefix = F.scaled_dot_product_attention(*first, is_causal=True)
    behind = mask[None, None, length:]
    branches = F.scaled_dot_product_attention(q[:, :, length:], k, v, attn_mask=behind)
    return torch.cat([prefix, branches], dim=2)


if __name__ == "__main__":
    main()
