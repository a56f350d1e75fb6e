"""All benchmarks at small size, one after the other, into one file: `make bench`.

python experiments/benchmarks/run.py             CPU; 8 minutes on 2 idle cores
python experiments/benchmarks/run.py --gpu       the rows that need a GPU; not measured yet
python experiments/benchmarks/run.py --list      what would run

Each runs in a process of its own and adds its lines to results/<date>-<device>.jsonl beside this
file. One that fails is named at the end, and the exit code says so; the others run nevertheless.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import shlex
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
CPU = (
    'against.py --prompt 190 --repeats 5 --sides "ours,torch split,trl"',
    'against.py --prompt 600 --repeats 5 --sides "ours,torch split,trl"',
    "against.py --prompt 190 --sample 8 --response 32 --repeats 5",
    "step.py --repeats 5",
    "scale.py --part branches --repeats 5",
    "scale.py --part prefix --repeats 5",
    "scale.py --part mesh --prompt 190",
    "overhead.py --repeats 5 --block 2",
    "judging.py --repeats 5",
    "load.py --repeats 5",
    "data.py --repeats 5",
    "padding.py",
)
GPU = (
    "against.py --cuda --repeats 10",
    "against.py --cuda --attention cudnn --repeats 10",
    "step.py --scale gpu --prompt 1000 --response 256 --remat full --rows 8 --repeats 10",
    "step.py --scale gpu --prompt 1000 --response 256 --remat dots --rows 8 --repeats 10",
    "step.py --scale gpu --prompt 1000 --response 256 --remat full --rows 8 --attention cudnn "
    "--repeats 10",
    "step.py --scale gpu --prompt 1000 --response 256 --remat dots --rows 8 --attention cudnn "
    "--repeats 10",
    "scale.py --part branches --scale gpu --rows 2 --repeats 10",
    "sampling.py --scale gpu --repeats 10",
    "judging.py --scale gpu --repeats 10",
    "data.py --repeats 10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--results", default=str(HERE / "results"), help="a folder")
    parser.add_argument("--only", default="", help="a word that a command must hold")
    args = parser.parse_args()
    commands = [command for command in (GPU if args.gpu else CPU) if args.only in command]
    if args.list:
        print("\n".join(commands))
        return
    device = "gpu" if args.gpu else f"cpu{len(os.sched_getaffinity(0))}"
    out = pathlib.Path(args.results) / f"{datetime.date.today().isoformat()}-{device}.jsonl"
    unfinished = out.with_suffix(".part.jsonl")
    unfinished.unlink(missing_ok=True)
    failed = [command for command in commands if not run(command, unfinished, gpu=args.gpu)]
    if unfinished.exists():
        unfinished.replace(out)
        print(f"Results: {out}")
    if failed:
        sys.exit("Failed: " + "; ".join(failed))


def run(command: str, out: pathlib.Path, *, gpu: bool) -> bool:
    """Whether it ended well."""
    words = shlex.split(command)
    environment = os.environ | ({} if gpu else {"JAX_PLATFORMS": "cpu"})
    print(f"--- {command}", flush=True)
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, str(HERE / words[0]), *words[1:], f"--out={out}"], env=environment
    )
    print(f"    {time.perf_counter() - started:.0f} s", flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    main()
