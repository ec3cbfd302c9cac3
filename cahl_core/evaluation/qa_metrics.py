"""Answers in words against gold answers: EM, F1 and cover-EM; pure functions.

Normalised as in SQuAD and Search-R1: lower case, no ASCII punctuation, no articles, single spaces; an
answer of articles alone keeps them, so that no gold answer is empty. Where several gold answers are
accepted, the best one counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from cahl_core.canonical import date_of

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
SHORT = 3  # characters of a normalised gold answer up to which it is looked for as whole words


def normalise(text: str) -> str:
    """What is compared.

    >>> normalise("The  Beatles!"), normalise("The"), normalise("4,884 m")
    ('beatles', 'the', '4884 m')
    """
    plain = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split()) or " ".join(plain.split())


def exact(answer: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised answer is a normalised gold answer."""
    return _best(_exact, answer, golds)


def exact_with_dates(answer: str, golds: Sequence[str]) -> float:
    """`exact`, and 1.0 as well if both are the same date in forms that `canonical.date_of` reads.

    >>> exact_with_dates("April 30, 1789.", ["30 April 1789"]), exact("April 30, 1789", ["30 April 1789"])
    (1.0, 0.0)
    """
    return max(exact(answer, golds), _best(_same_date, answer, golds))


def covers(answer: str, golds: Sequence[str]) -> float:
    """Cover-EM: 1.0 if a normalised gold answer stands in the normalised answer.

    Very short ones and numbers must stand there as whole words: "l", "52" or "yes" are parts of almost
    anything.

    >>> covers("It was Titan IIIE.", ["Titan IIIE"]), covers("all", ["l"]), covers("1520", ["52"])
    (1.0, 0.0, 0.0)
    """
    return _best(_covers, answer, golds)


def f1(answer: str, golds: Sequence[str]) -> float:
    """The F1 of the words that both have, counted with repetition (SQuAD).

    >>> f1("the red fox", ["red foxes"])
    0.5
    """
    return _best(_f1, answer, golds)


def _best(measure: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    return max((measure(answer, gold) for gold in golds), default=0.0)


def _exact(answer: str, gold: str) -> float:
    return float(bool(normalise(answer)) and normalise(answer) == normalise(gold))


def _same_date(answer: str, gold: str) -> float:
    due = date_of(gold.strip(" ."))
    return float(due is not None and date_of(answer.strip(" .")) == due)


def _covers(answer: str, gold: str) -> float:
    said, due = normalise(answer), normalise(gold)
    if len(due) <= SHORT or due.replace(" ", "").isdecimal():
        said, due = f" {said} ", f" {due} "
    return float(bool(due.strip()) and due in said)


def _f1(answer: str, gold: str) -> float:
    said, due = normalise(answer).split(), normalise(gold).split()
    common = sum((Counter(said) & Counter(due)).values())
    return 2 * common / (len(said) + len(due)) if common else 0.0
