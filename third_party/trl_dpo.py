"""TRL's DPOTrainer as one side of a comparison: see experiments/benchmarks/turns.py.

  python third_party/trl_dpo.py --folder DIR --steps 8        DIR as checkpoint.py writes it

The trainer runs as it is. A callback holds it before each optimisation step until it is told to go
on: forward, backward, clipping and optimizer count; reading, decoding and collating rows do not.
Attention is SDPA, the optimizer AdamW (fused), nothing is recomputed in the backward pass, and the
reference is a second model in the step, for TRL 1.16 refuses precomputed log-probabilities where
there are images. On a GPU: bfloat16 autocast over float32 parameters.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"))

import datasets
import torch
import transformers
import trl
import turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="of checkpoint.py")
    parser.add_argument("--steps", type=int, required=True, help="at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    imported = turns.resident()
    trainer = build(args)
    turns.serve(Steps(trainer).step, {"torch": torch.__version__}, imported=imported)


def build(args: argparse.Namespace) -> Trainer:
    folder = pathlib.Path(args.folder)

    def load(name: str):
        return transformers.LlavaForConditionalGeneration.from_pretrained(
            folder / name, dtype=torch.float32, attn_implementation="sdpa"
        )

    data = rows(folder)
    config = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl_dpo-"),
        per_device_train_batch_size=len(data),
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_length=None,
        beta=0.1,
        gradient_checkpointing=False,
        bf16=args.cuda,
        use_cpu=not args.cuda,
        logging_strategy="no",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=args.cuda,
    )
    return Trainer(
        load("policy"),
        ref_model=load("reference"),
        args=config,
        train_dataset=data,
        processing_class=transformers.AutoProcessor.from_pretrained(folder / "policy"),
    )


def rows(folder: pathlib.Path) -> datasets.Dataset:
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in found:
        row["images"] = [str(folder / name) for name in row["images"]]
    return datasets.Dataset.from_list(found).cast_column(
        "images", datasets.Sequence(datasets.Image())
    )


class Trainer(trl.DPOTrainer):
    """Keeps the loss of a step as it is; the log rounds it."""

    def training_step(self, *args, **kwargs):
        self.seen = super().training_step(*args, **kwargs)
        return self.seen


class Steps(transformers.TrainerCallback):
    """The trainer's own loop in a thread of its own, held before every step."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        trainer.add_callback(self)
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> float:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return float(self._trainer.seen)  # on a GPU this waits for the optimizer, too

    def _run(self) -> None:
        try:
            self._trainer.train()
            self._error = RuntimeError("No steps are left; give --steps a larger number.")
        except BaseException as error:  # told where the step was asked for
            self._error = error
        self._done.release()

    def on_step_begin(self, *_, **__):
        self._go.acquire()

    def on_step_end(self, *_, **__):
        self._done.release()


if __name__ == "__main__":
    main()
