"""Sampling by transformers: one side of a comparison (experiments/benchmarks/turns.py).

  python third_party/generate.py --folder DIR --count 8 --length 32     DIR of checkpoint.py

`generate` with its key-value cache: `count` responses of exactly `length` tokens for every prompt
of the folder, at temperature 1 from the whole vocabulary. A step's "loss" is its number of tokens.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"))

import torch
import torch_dpo
import turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="of checkpoint.py")
    parser.add_argument("--count", type=int, default=8, help="K, responses to a prompt")
    parser.add_argument("--length", type=int, default=32, help="tokens of a response")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    imported = turns.resident()
    folder, device = pathlib.Path(args.folder), "cuda" if args.cuda else "cpu"
    model = torch_dpo.load(folder / "policy", device).eval()
    batch = {name: value.to(device) for name, value in torch_dpo.read(folder).items()}

    def step() -> float:
        with torch.no_grad(), torch_dpo.autocast(args.cuda):
            found = model.generate(
                input_ids=batch["prompt"],
                attention_mask=torch.ones_like(batch["prompt"]),
                pixel_values=batch["pixels"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=args.count,
                min_new_tokens=args.length,
                max_new_tokens=args.length,
                pad_token_id=1,
                use_cache=True,
            )
        return float(found[:, batch["prompt"].shape[1] :].numel())

    turns.serve(step, {"torch": torch.__version__}, imported=imported)


if __name__ == "__main__":
    main()
