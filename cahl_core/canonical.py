"""When two JSON values count as equal: the rules behind every comparison of arguments.

Always:

- numbers are equal by value: 5 = 5.0 = 5e0, -0.0 = 0. A float is taken for an integer up to 2**53,
  where every integer still has a float of its own; beyond, 1e16 and 10000000000000000 differ;
- JSON types matter: 5 is not ``"5"``, ``true`` is neither 1 nor ``"true"``, ``null`` is neither ``""`` nor
  a missing key;
- white space around a text is ignored; inside it counts, as it does in code or verse;
- the order of an object's keys is ignored, the order of a list counts; keys are compared exactly.

Optional, of texts that are values (`ValueSettings`):

- ``dates``: a text that is one valid date is that date, in any of these forms: ``2026-11-21`` (also with
  ``/`` or ``.``, and one-digit months or days), ``21 November 2026``, ``21st of Nov. 2026``,
  ``21-Nov-2026``, ``November 21, 2026``, and, where only one reading is a date, ``21/11/2026`` or
  ``11/21/2026`` (also with ``-`` or ``.``). ``03/04/2026`` has two readings and stays a text; so do
  two-digit years, digits alone, weekdays, times, and dates within longer texts. After the form
  ``2026-11-21`` a time may follow (``T10:30``, `` 10:30:00``, ``T10:30:00.5Z``): seconds that are zero may
  be left out, ``Z`` is ``+00:00``, other zones are not converted, and a date is not its own midnight;
- ``ignore_case``: texts are case-folded.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cahl_core.train_config import ValueSettings

EXACT = ValueSettings()
MONTHS = {
    name[:size]: number
    for number, name in enumerate(
        ("january", "february", "march", "april", "may", "june", "july", "august", "september",
         "october", "november", "december"), 1
    )
    for size in (3, len(name))
} | {"sept": 9}  # fmt: skip
YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
DAY_MONTH = re.compile(
    r"(\d{1,2})(?:st|nd|rd|th)?(?:\s+of\s+|\s+|-)([a-z]{3,9})(?:\.?,?\s+|-)(\d{4})",
    re.IGNORECASE,
)
MONTH_DAY = re.compile(
    r"([a-z]{3,9})\.?\s+(\d{1,2})(?:st|nd|rd|th)?(?:,\s*|\s+)(\d{4})", re.IGNORECASE
)
MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?(Z|[+-]\d{2}:\d{2})?"
)
PLAIN = (int, bool, type(None))
LONGEST_DATE = 40  # no form is longer: long texts are not searched


def canonical(value: Any, rules: ValueSettings = EXACT) -> str:
    """Equal values, and only those, give equal text: the value as JSON after the module's rules.

    >>> canonical({"b": 1.0, "a": " x "}) == canonical({"a": "x", "b": 1})
    True
    >>> canonical(True) == canonical(1), canonical("5") == canonical(5)
    (False, False)
    >>> canonical("21/11/2026", ValueSettings(dates=True))
    '"2026-11-21"'
    """
    return json.dumps(_plain(value, rules), sort_keys=True, ensure_ascii=False)


def equal(first: Any, second: Any, rules: ValueSettings = EXACT) -> bool:
    """Whether two JSON values are equal under the module's rules.

    >>> equal("Rome", "rome"), equal("Rome", "rome ", ValueSettings(ignore_case=True))
    (False, True)
    """
    kind = type(first)
    if kind is type(second) and kind in PLAIN:  # what nearly every argument is
        return bool(first == second)
    if kind is str and type(second) is str:
        return _text(first, rules) == _text(second, rules)
    return canonical(first, rules) == canonical(second, rules)


def leaves(value: Any) -> Iterator[Any]:
    """The scalar values inside a JSON value; an empty container counts as one leaf."""
    return (leaf for _, leaf in paths(value))


def paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`leaves` with where each stands.

    >>> list(paths({"a": [1, {"b": 2}], "c": {}}))
    [('a[0]', 1), ('a[1].b', 2), ('c', {})]
    """
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from paths(item, f"{path}[{index}]")
    else:
        yield path, value


def _plain(value: Any, rules: ValueSettings) -> Any:
    if isinstance(value, str):
        return _text(value, rules)
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, rules) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, rules) for v in value]
    return value


def _text(text: str, rules: ValueSettings) -> str:
    text = text.strip()
    if rules.dates and (found := date_of(text)) is not None:
        return found
    return text.casefold() if rules.ignore_case else text


def date_of(text: str) -> str | None:
    """The date that ``text`` is, as ``YYYY-MM-DD`` with its time if it has one, or ``None``.

    >>> date_of("Nov. 3, 2026"), date_of("13/02/2026"), date_of("03/04/2026"), date_of("31/02/2026")
    ('2026-11-03', '2026-02-13', None, None)
    >>> date_of("2026-11-03 09:05Z")
    '2026-11-03T09:05:00+00:00'
    """
    if len(text) > LONGEST_DATE or not text.isascii():
        return None
    if match := YEAR_FIRST.fullmatch(text):
        return _one_date([(match[1], match[3], match[4])])
    if match := YEAR_LAST.fullmatch(text):
        first, second, year = match[1], match[3], match[4]
        return _one_date([(year, second, first), (year, first, second)])
    if match := DAY_MONTH.fullmatch(text):
        return _one_date([(match[3], MONTHS.get(match[2].lower(), 0), match[1])])
    if match := MONTH_DAY.fullmatch(text):
        return _one_date([(match[3], MONTHS.get(match[1].lower(), 0), match[2])])
    match = MOMENT.fullmatch(text)
    return _moment(match) if match else None


def _one_date(readings: Sequence[tuple[Any, Any, Any]]) -> str | None:
    """The one date among (year, month, day) readings, if they do not give two."""
    found = set()
    for year, month, day in readings:
        try:
            found.add(datetime.date(int(year), int(month), int(day)).isoformat())
        except ValueError:
            continue
    return found.pop() if len(found) == 1 else None


def _moment(match: re.Match[str]) -> str | None:
    date, minutes, seconds, fraction, zone = match.groups()
    time = f"{minutes}:{seconds or '00'}"
    zone = "+00:00" if zone == "Z" else zone or ""
    try:
        datetime.datetime.fromisoformat(f"{date}T{time}{zone}")
    except ValueError:
        return None
    fraction = (fraction or "").rstrip("0")
    return f"{date}T{time}{'.' + fraction if fraction else ''}{zone}"
