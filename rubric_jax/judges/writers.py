"""Writers of rubrics, by name: instructions -> (instruction, what was written).

oracle     the ground truth of scenes (column `facts`)
template   the same hand-written criteria for every instance
rules      criteria that a program decides, with what the instruction says is right
openai     a model behind any OpenAI-compatible server
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rubric_jax import config
from rubric_jax.data import instructions, scenes
from rubric_jax.judges import client, oracle, verdicts, writer
from rubric_jax.judges import rules as rules_lib
from rubric_jax.rubrics import records, templates

Instructions = Iterable[instructions.Instruction]
Written = Iterator[tuple[instructions.Instruction, writer.Written]]


def from_oracle(tasks: Instructions, axes: Sequence[str]) -> Written:
    """Rubrics of scenes from their facts; the axes are those of scenes."""
    for task in tasks:
        if task.facts is None:
            raise ValueError(
                f"{task.where}: facts: missing; the writer `oracle` reads the ground truth that "
                "the command `scenes` writes. For other data use `openai` or `template`."
            )
        rubric = oracle.rubric(scenes.from_facts(task.facts), task.key)
        yield task, writer.Written(rubric, (), (), verdicts.Usage())


def from_template(tasks: Instructions, axes: Sequence[str], *, template: str) -> Written:
    """The criteria of a template for every instance; template: a built-in name, or a file."""
    common = templates.load(template, axes=axes)
    for task in tasks:
        yield task, writer.Written(templates.apply(common, task.key), (), (), verdicts.Usage())


def from_rules(
    tasks: Instructions,
    axes: Sequence[str],
    *,
    rules: Mapping[str, Any],
    otherwise: str = "",
) -> Written:
    """Criteria for the judge `rules`; see its table for what the instructions must say.

    Args:
      rules: by criterion {"rule": name, <knobs>}, and the criterion's text, kind, weight, axis and
        penalty where they are not: the rule's name, essential, 1, the criterion's name, false. One
        without a rule is for another judge; it has a text, and a scale.
      otherwise: a template whose criteria stand in where an instruction does not say what a rule
        needs; "" = an error.
    """
    del axes  # checked with the config
    common = templates.load(otherwise) if otherwise else None
    for task in tasks:
        lacking = {ident: _lacking(given, task) for ident, given in rules.items()}
        missing = next(filter(None, lacking.values()), "")
        if missing and common is None:
            raise ValueError(
                f"{task.where}: the rules need {missing}, which the row does not say; add it, or "
                "name a template for such instructions: config.pool.writer.otherwise."
            )
        kept = {ident: given for ident, given in rules.items() if not lacking[ident]}
        more = common.criteria if missing else ()
        rubric = _by_rules(kept, task.where, task.key, more, task)
        yield task, writer.Written(rubric, (), (), verdicts.Usage())


def _lacking(given: Mapping[str, Any], task: instructions.Instruction) -> str:
    """What a rule needs and the instruction does not say; "" = nothing."""
    for name in rules_lib.given(given.get("rule", "")):
        if rules_lib.GIVEN[name](task) in (None, ""):
            return {"right": "answer"}.get(name, f"facts.{name}")
    return ""


def _by_rules(
    spec: Mapping[str, Any],
    where: str,
    key: str = "rules",
    more: Sequence[records.Criterion] = (),
    task: instructions.Instruction | None = None,
) -> records.Rubric:
    """The rubric of an instruction; without a task, what all of them have in common."""
    criteria = []
    for ident, given in spec.items():
        about = {"kind": "essential", "weight": 1, "axis": ident}
        if "rule" in given:
            check = {name: value for name, value in given.items() if name not in _ABOUT}
            if task is not None:
                known = rules_lib.given(given["rule"])
                check |= {name: rules_lib.GIVEN[name](task) for name in known}
            about |= {"text": f"By the rule {given['rule']}.", "scale": "binary", "check": check}
        own = {name: given[name] for name in _ABOUT if name in given}
        criteria.append({"id": ident, **about, **own})
    criteria += [criterion.model_dump() for criterion in more]
    return records.parse({"key": key, "source": "rules", "criteria": criteria}, where=where)


_ABOUT = ("text", "kind", "weight", "axis", "penalty", "scale", "levels")


def from_server(
    tasks: Instructions,
    axes: Sequence[str],
    *,
    model: str,
    base_url: str,
    sharpen: bool = False,
    reasks: int = 1,
    most: int = 10,
    seed: int = 0,
    server: Mapping[str, Any] | None = None,
) -> Written:
    """Rubrics by a model that sees the picture, the instruction and, where the row has them, a
    right response and candidates; see writer.write, and client.Server for `server`."""
    where = client.server(model, base_url, server)
    waiting: dict[int, tuple[writer.Task, instructions.Instruction]] = {}

    def asked() -> Iterator[writer.Task]:
        for task in tasks:
            made = writer.Task(task.instance(), task.reference, task.candidates)
            waiting[id(made)] = made, task
            yield made

    knobs = {"sharpen": sharpen, "reasks": reasks, "most": most, "seed": seed}
    for made, written in writer.write(where, asked(), axes=axes, **knobs):
        yield waiting.pop(id(made))[1], written


WRITERS: dict[str, Callable[..., Written]] = {
    "oracle": from_oracle,
    "template": from_template,
    "rules": from_rules,
    "openai": from_server,
}


def check(spec: Mapping[str, Any], axes: Sequence[str]) -> None:
    """Raises ValueError for a spec that cannot write. Reads the template, and asks nobody.

    Unknown are writers, knobs and templates; wrong are types and values of knobs, a server without
    model or address, and criteria for axes that the run (`axes`, empty = any) does not have.
    """
    knobs = build(spec).keywords
    name = spec["writer"]
    try:
        _CHECKS[name](axes, **knobs)
    except ValueError as error:
        raise ValueError(f"rubric writer {name!r}: {error}") from error


def _check_oracle(axes: Sequence[str]) -> None:
    _check_axes("it", scenes.AXES, axes)


def _check_template(axes: Sequence[str], *, template: str) -> None:
    common = templates.load(template)
    _check_axes(f"the template {template!r}", records.axes_of([common]), axes)


def _check_rules(axes: Sequence[str], *, rules: Mapping[str, Any], otherwise: str = "") -> None:
    for ident, given in rules.items():
        if not isinstance(given, Mapping):
            raise ValueError(
                f"rules.{ident} is {given!r}; it must be such as {{'rule': 'answer'}}."
            )
        knobs = {name: value for name, value in given.items() if name not in _ABOUT}
        if knobs or "text" not in given:
            try:
                rules_lib.check(knobs)
            except ValueError as error:
                raise ValueError(f"rules.{ident}: {error}") from error
    common = templates.load(otherwise).criteria if otherwise else ()
    found = _by_rules(rules, "config.pool.writer.rules", more=common)
    _check_axes("it", records.axes_of([found]), axes)


def _check_server(axes: Sequence[str], *, model, base_url, server=None, **knobs) -> None:
    client.server(model, base_url, server)
    for knob, least in (("reasks", 0), ("most", 1)):
        if knobs.get(knob, least) < least:
            raise ValueError(f"{knob} is {knobs[knob]}; it must be at least {least}.")
    if not axes:
        raise ValueError("it needs the reward axes; name them in config.data.axes.")


def _check_axes(what: str, named: Sequence[str], axes: Sequence[str]) -> None:
    lacking = [axis for axis in named if axis not in axes]
    if axes and lacking:
        raise ValueError(
            f"{what} has criteria for {', '.join(named)}, and config.data.axes "
            f"({', '.join(axes)}) lacks {', '.join(lacking)}. Add these, leave config.data.axes "
            "empty, or take another writer or template."
        )


_CHECKS: dict[str, Callable[..., None]] = {
    "oracle": _check_oracle,
    "template": _check_template,
    "rules": _check_rules,
    "openai": _check_server,
}


def build(spec: Mapping[str, Any]) -> Callable[[Instructions, Sequence[str]], Written]:
    """The writer of a config: {"writer": name, **knobs}; ValueError names what is wrong."""
    knobs = dict(spec)
    name = knobs.pop("writer", "")
    function = config.bind(WRITERS, name, knobs, what="rubric writer")
    return functools.partial(
        function, **config.check(function, knobs, what=f"rubric writer {name!r}")
    )
