"""A random LLaVA in Hugging Face's format, a second one as its reference, and rows that fit them.

  python third_party/checkpoint.py --out DIR --image 168 --prompt 190 --response 64 --rows 2

    DIR/policy, DIR/reference   LlavaForConditionalGeneration, saved by transformers
    DIR/rows.jsonl, DIR/*.png   TRL's vision preference layout; every row has a picture of its own

The default is of 30 million parameters. The reference is the policy with noise on every tensor, so
that losses tell whether both sides compute the same.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import PIL.Image
import tokenizers
import torch
import transformers

PATCH = 14
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
TEMPLATE = (
    "{% for m in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}[m['role']] }}"
    "{% if m['content'] is string %}{{ m['content'] }} {% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--image", type=int, default=168, help="pixels a side, patches of 14")
    parser.add_argument("--prompt", type=int, default=190, help="tokens, those of the image too")
    parser.add_argument("--response", type=int, default=64, help="tokens")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--mlp", type=int, default=1376)
    parser.add_argument("--vision-width", type=int, default=192)
    parser.add_argument("--vision-depth", type=int, default=4)
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    count = write_model(out / "policy", args, seed=0, noise=0.0)
    write_model(out / "reference", args, seed=0, noise=0.003)
    write_rows(out, args)
    print(f"{count:,} parameters")


def write_model(directory: pathlib.Path, args: argparse.Namespace, *, seed: int, noise: float):
    """Model, tokenizer and processor; returns the number of parameters."""
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=args.vocab,
            hidden_size=args.width,
            intermediate_size=args.mlp,
            num_hidden_layers=args.depth,
            num_attention_heads=args.width // 64,
            num_key_value_heads=args.width // 64,
            max_position_embeddings=4096,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=SPECIAL.index("</s>"),
            pad_token_id=SPECIAL.index("<pad>"),
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=args.vision_width,
            intermediate_size=4 * args.vision_width,
            num_hidden_layers=args.vision_depth,
            num_attention_heads=args.vision_width // 64,
            image_size=args.image,
            patch_size=PATCH,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(args.image // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(directory)
    _processor(args).save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def _processor(args: argparse.Namespace) -> transformers.LlavaProcessor:
    words = (*SPECIAL, *(f"w{i}" for i in range(args.vocab - len(SPECIAL))))
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    side = args.image
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def write_rows(out: pathlib.Path, args: argparse.Namespace) -> None:
    """Rows of random words: all of the same lengths, so that nobody pads."""
    rng = np.random.default_rng(0)
    words = args.prompt - (args.image // PATCH) ** 2 - 2  # USER: and ASSISTANT:
    if words < 1:
        raise ValueError(f"{args.prompt} prompt tokens leave no word behind the image's.")

    def text(count: int) -> str:
        drawn = rng.integers(0, args.vocab - len(SPECIAL), count)
        return " ".join(f"w{i}" for i in drawn)

    lines = []
    for i in range(args.rows):
        pixels = rng.integers(0, 256, (args.image, args.image, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(out / f"{i}.png")
        content = [{"type": "image"}, {"type": "text", "text": text(words)}]
        row = {
            "prompt": [{"role": "user", "content": content}],
            "images": [f"{i}.png"],
        }
        for side in ("chosen", "rejected"):  # the template adds </s>
            answer = [{"type": "text", "text": text(args.response - 1)}]
            row[side] = [{"role": "assistant", "content": answer}]
        lines.append(json.dumps(row) + "\n")
    (out / "rows.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
