"""The final answer of a response, and whether it is the right one."""

from __future__ import annotations

import re
from typing import NamedTuple

from rubric_jax.recipes import groups as groups_lib

# After the last "answer is" or "answer:", up to the end of the sentence or line. A point inside a
# word or number, as in 3.5, ends no sentence.
PATTERN = (
    r"(?i)\banswer\W{0,3}(?:\s+is\b|:)[\s:*]*"
    r"((?:(?!\banswer\W{0,3}(?:\s+is\b|:))[^\n])+?)\s*(?:[.!?](?!\w)|\n|$)"
)

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")


class Pools(NamedTuple):
    """Responses by their final answer."""

    right: list[int]
    wrong: list[int]
    unparsable: list[int]


def parse(text: str, pattern: str = "") -> str:
    """The final answer, normalised; '' if there is none.

    Args:
      text: a response.
      pattern: a regular expression with one group, of which the last match counts; '' = PATTERN.
    """
    found = [match.group(1) for match in re.finditer(pattern or PATTERN, text)]
    return next((normal(answer) for answer in reversed(found) if answer and answer.strip()), "")


def normal(answer: str) -> str:
    r"""The answer without case, surrounding punctuation, articles in front and LaTeX's dress.

    'The Red circle.' -> 'red circle'; 'Two' -> '2'; '$\boxed{1,000}$' -> '1000'; '(B)' -> 'b'
    """
    plain = re.sub(r"</?\w+>", " ", answer.casefold()).replace("\N{MINUS SIGN}", "-")
    plain = re.sub(r"\\(?:boxed|text|mathrm|textbf)\s*\{", "{", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    words = [_bare(word) for word in plain.split()]
    words = [_DIGITS.get(word, word) for word in words if word]
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words) or " ".join(answer.casefold().split())


def contains(answer: str, right: str) -> bool:
    """Whether the words of `right` stand, in a row, in `answer`; both normalised."""
    return f" {right} " in f" {answer} "


def pools(group: groups_lib.Group, responses: list[int], pattern: str) -> Pools:
    """Sorts responses into right, wrong and unparsable ones, by the group's answer."""
    found, right = Pools([], [], []), normal(group.answer)
    for k in responses:
        answer = parse(group.responses[k].text, pattern)
        pool = found.unparsable if not answer else found.wrong if answer != right else found.right
        pool.append(k)
    return found


def _bare(word: str) -> str:
    """A word without the punctuation around it; '-' and '.' in front of a digit stay."""
    found = re.search(r"-?\.?\d.*\w|-?\.?\d|\w.*\w|\w", word)
    return found.group() if found else ""
