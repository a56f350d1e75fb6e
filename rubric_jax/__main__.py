"""The command line.

  python -m rubric_jax audit  --config=FILE --config.model.checkpoint=DIR --config.data.path=DATA
  python -m rubric_jax train  --config=FILE ... --workdir=RUN
  python -m rubric_jax score  --config=FILE ... --out=logps.npz
  python -m rubric_jax export --workdir=RUN --out=HF_DIR [--step=best] [--dtype=bfloat16]
                              [--adapter=PEFT_DIR]
  python -m rubric_jax combine --config=FILE ... --adapters=DIR=0.7,DIR=0.3 --out=PEFT_DIR
  python -m rubric_jax questions --config=FILE --config.data.path=DATA --out=instructions.jsonl
  python -m rubric_jax scenes --out=DIR [--rows=2000]      the embedded data, and a toy model
  python -m rubric_jax quickstart --workdir=RUN

  python -m rubric_jax run --config=configs/rdpo_llava.py ... --workdir=RUN    the whole pipeline
  python -m rubric_jax rubrics --config=FILE ... --workdir=RUN                  one stage of it
  python -m rubric_jax sample|judge|pair|train|eval --round=1 --config=FILE ... --workdir=RUN
  python -m rubric_jax report --workdir=RUN

Every field of a config can be set: --config.train.steps=100. See rubric_jax/config.py for all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping

from absl import app, flags, logging
from ml_collections import config_flags

from rubric_jax import checkpoint, quickstart, report, stages
from rubric_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, and its fields.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory; made, or resumed.")
_OUT = flags.DEFINE_string("out", None, "Where score, export and scenes write.")
_STEP = flags.DEFINE_string("step", None, "export: a step, or 'best'; the latest by default.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "export: as it came by default.")
_ADAPTER = flags.DEFINE_string("adapter", "", "export: where the run's adapter goes, for peft.")
_ADAPTERS = flags.DEFINE_string("adapters", None, "combine: DIR=weight,DIR=weight, by peft.")
_BY = flags.DEFINE_string("by", "concatenate", "combine: concatenate (exact), or average.")
_ROWS = flags.DEFINE_integer("rows", 2000, "scenes: preference pairs.", lower_bound=1)
_ROUND = flags.DEFINE_integer(
    "round", None, "Of a stage: 1 by default; eval --round=0 is the base.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "scenes: another seed, other pictures.")


def _audit() -> None:
    print(stages.audit(_config(), _WORKDIR.value))


def _train() -> None:
    if _ROUND.value is not None:
        number = _round()
        _print_counts({"steps": _run().train(number).step})
        return
    outcome, _ = stages.fit(_config(), _need(_WORKDIR))
    for name, value in sorted(outcome.metrics.items()):
        print(f"{name:32s} {value:.4f}")
    sys.exit(0 if outcome.finished else 143)  # as a shell says of a process ended by SIGTERM


def _score() -> None:
    stages.score(_config(), _need(_OUT), _WORKDIR.value)


def _export() -> None:
    step = _STEP.value
    if step not in (None, "best"):
        if not step.isdigit():
            raise ValueError(f"--step={step} is neither a number nor 'best'.")
        step = int(step)
    out = (_OUT.value or "") if _ADAPTER.value else _need(_OUT)
    stages.export(_need(_WORKDIR), out, step=step, dtype=_DTYPE.value, adapter=_ADAPTER.value)


def _combine() -> None:
    stages.combine(_config(), _need(_ADAPTERS), _need(_OUT), by=_BY.value)


def _questions() -> None:
    out = _need(_OUT)
    print(f"{out}: {stages.write_questions(_config().data, out)} instructions", file=sys.stderr)


def _scenes() -> None:
    out = _need(_OUT)
    with checkpoint.disk_errors(out):
        quickstart.write_scenes(out, pairs=_ROWS.value, seed=_SEED.value)


def _quickstart() -> None:
    quickstart.run(_need(_WORKDIR))


def _rubrics() -> None:
    _print_counts(_run().rubrics())


def _sample() -> None:
    number = _round()
    _print_counts(_run().sample(number))


def _judge() -> None:
    number, run = _round(), _run()
    _print_counts(run.judge(number, again=run.config.judging.again))


def _pair() -> None:
    number = _round()
    _print_counts(_run().pair(number))


def _eval() -> None:
    value = _run().eval(1 if _ROUND.value is None else _ROUND.value)
    for name, measure in value.get("measures", {}).items():  # the first process has them
        if measure["n"]:
            interval = f"[{measure['low']:.4f}, {measure['high']:.4f}]"
            print(f"{name:24s} {measure['mean']:.4f}  95 % {interval}  n={measure['n']}")


def _report() -> None:
    print(report.write(_need(_WORKDIR)))


def _everything() -> None:
    print(_run().all())


COMMANDS: dict[str, Callable[[], None]] = {
    "audit": _audit,
    "train": _train,
    "score": _score,
    "export": _export,
    "combine": _combine,
    "run": _everything,
    "rubrics": _rubrics,
    "sample": _sample,
    "judge": _judge,
    "pair": _pair,
    "eval": _eval,
    "report": _report,
    "questions": _questions,
    "scenes": _scenes,
    "quickstart": _quickstart,
}


def _run() -> stages.Run:
    run = stages.Run(_config(), _need(_WORKDIR))
    run.begin()
    return run


def _round() -> int:
    if _ROUND.value == 0:
        raise ValueError("--round=0 is the base, which only `eval` reads; rounds begin with 1.")
    return _ROUND.value or 1


def _print_counts(counts: Mapping[str, object]) -> None:
    for name, value in counts.items():
        print(f"{name:16s} {value}")


def _config() -> config_lib.Config:
    if _CONFIG.value is None:
        raise ValueError("This command needs --config=FILE, such as --config=configs/llava.py.")
    try:
        values = _CONFIG.value.to_dict()
    except OSError as error:  # raised on first use of a file that could not be read
        raise ValueError(_unreadable(error)) from error
    return config_lib.build(values)


def _unreadable(error: OSError) -> str:
    return "--config: " + " ".join(str(error.__cause__ or error).split())


def _need(flag: flags.FlagHolder) -> str:
    if not flag.value:
        raise ValueError(f"This command needs --{flag.name}.")
    return flag.value


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with one line in place of a traceback for what the config file lacks."""
    try:
        return app.parse_flags_with_usage(argv)
    except OSError as error:
        sys.exit(f"error: {_unreadable(error)}")
    except AttributeError as error:
        # ml_collections raises AttributeError(KeyError('pth\nDid you mean "path" ...')), quoted.
        found = re.match(r"\W*(\w+)\W(?:.*Did you mean \"(\w+)\")?", str(error))
        given = [arg.split("=")[0].lstrip("-") for arg in argv if re.match(r"--?config\.", arg)]
        fields = [field for field in given if found and found[1] in field.split(".")]
        if not fields:
            raise
        hint = "Fields that the file leaves out can be set here once they stand in it."
        hint = f"Did you mean {found[2]!r}?" if found[2] else hint
        sys.exit(f"error: {fields[0]}: the config file has no field {found[1]!r}. {hint}")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if len(argv) != 2:
        raise app.UsageError(f"Give one command of {', '.join(COMMANDS)}; found {argv[1:]}.")
    if argv[1] not in COMMANDS:
        sys.exit(
            f"error: Unknown command {argv[1]!r}; it must be {config_lib.one_of(argv[1], COMMANDS)}"
        )
    try:
        COMMANDS[argv[1]]()
    except stages.Interrupted as stopped:
        print(f"stopped; saved in {stopped}. The same command goes on.", file=sys.stderr)
        sys.exit(143)  # as a shell says of a process ended by SIGTERM
    except (ValueError, FloatingPointError) as error:
        # What a user can mend: the message says how, a traceback would hide it. -v=1 shows both.
        if logging.get_verbosity() >= logging.INFO:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
