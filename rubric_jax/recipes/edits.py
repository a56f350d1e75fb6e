"""Slot swaps: texts with single words replaced by others of their kind.

i see a small red circle at top left .  ->  i see a small blue circle at top left .
"""

from __future__ import annotations

import functools
import random
import re
from typing import NamedTuple

# English. A word stands in one list; the longest one that fits is read, so "top left" is one slot.
SLOTS = (
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    tuple(map(str, range(11))),
    tuple(f"{a} {b}" for a in ("top", "middle", "bottom") for b in ("left", "center", "right")),
    ("left", "right"),
    ("top", "bottom"),
    ("above", "below"),
    ("over", "under"),
    ("inside", "outside"),
    ("front", "back"),
    ("in front of", "behind"),
    ("before", "after"),
    ("first", "second", "third", "last"),
    ("small", "large"),
    ("tiny", "huge"),
    ("little", "big"),
    ("short", "tall"),
    ("smaller", "larger"),
    ("shorter", "taller"),
    ("lower", "higher"),
    ("lowest", "highest"),
    ("smallest", "largest"),
    ("fewer", "more"),
    ("least", "most"),
    ("decreases", "increases"),
    ("circle", "square", "triangle"),
    ("circles", "squares", "triangles"),
    ("man", "woman"),
    ("men", "women"),
    ("boy", "girl"),
    ("open", "closed"),
)

_VOWELS = tuple("aeiou")


class Slot(NamedTuple):
    start: int
    end: int
    options: tuple[str, ...]  # what may stand there instead


def find(text: str, slots: tuple[tuple[str, ...], ...], *, same_length: bool) -> list[Slot]:
    """All places of the text where a listed word stands and another one of its list fits.

    Args:
      text: any.
      slots: lists of interchangeable words, or of several words as one.
      same_length: only replacements with as many words.
    """
    kinds, pattern = _compile(slots)
    found = []
    for match in pattern.finditer(text):
        old = match.group()
        article = re.search(r"\b(an?)\s+$", text[: match.start()], re.IGNORECASE)
        options = tuple(
            _cased(new, like=old)
            for new in kinds[_plain(old)]
            if _plain(new) != _plain(old)
            and (not same_length or len(new.split()) == len(old.split()))
            # "a red car" does not turn into "a orange car".
            and (not article or new.lower().startswith(_VOWELS) == (len(article.group(1)) == 2))
        )
        if options:
            found.append(Slot(match.start(), match.end(), options))
    return found


def swap(text: str, found: list[Slot], swaps: int, draw: random.Random) -> str:
    """The text with `swaps` of the slots, or all if there are fewer, replaced at random."""
    parts, end = [], len(text)
    chosen = draw.sample(found, min(swaps, len(found)))
    for slot in sorted(chosen, reverse=True):
        parts += [text[slot.end : end], draw.choice(slot.options)]
        end = slot.start
    return "".join([text[:end], *reversed(parts)])


@functools.lru_cache(maxsize=8)
def _compile(slots) -> tuple[dict[str, tuple[str, ...]], re.Pattern]:
    kinds: dict[str, tuple[str, ...]] = {}
    for words in slots:
        for word in words:
            kinds.setdefault(_plain(word), words)
    longest_first = sorted(kinds, key=len, reverse=True)
    words = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
    # Not a part of a word, of a number such as 2.5, or of a word with a hyphen.
    return kinds, re.compile(rf"(?<![\w-])(?<!\d[.,])(?:{words})(?![\w-]|[.,]\d)", re.IGNORECASE)


def _plain(word: str) -> str:
    return " ".join(word.lower().split())


def _cased(new: str, *, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if like[0].isupper() else new
