"""Numbers as people say them, and what they count: units, percentages, magnitudes.

What a number means is read from the argument's name and description; the gold always holds the plain
JSON number, the request may say "213 million people", "5%" or "three nights".
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from cahl_core.datasets.names import words

RATES = {"discount", "gst", "interest", "percent", "percentage", "rate", "tax", "tip", "vat"}
NOT_SHARES = {"exchange", "frame", "heart", "flow", "bit", "sampling", "hourly", "refresh", "wage"}
DECIMAL = re.compile(r"\bdecimal|\bfraction|\b0\.\d+ for\b", re.I)
PERCENT = re.compile(r"percent|%", re.I)
MONEY = {
    "balance", "bill", "budget", "cost", "expenses", "fee", "income", "loan", "price",
    "principal", "revenue", "salary", "subtotal", "payment", "investment", "assets", "profit",
}  # fmt: skip
# measures that mean one thing whatever the tool is for
UNITS = {
    "height": ("meters", "centimeters", "cm"), "width": ("meters", "cm"),
    "radius": ("meters", "cm", "kilometers"), "distance": ("kilometers", "miles", "meters"),
    "weight": ("kilograms", "kg", "pounds"), "mass": ("kilograms", "kg", "grams"),
    "duration": ("minutes",), "speed": ("km/h", "miles per hour"),
    "velocity": ("meters per second",), "temperature": ("degrees Celsius", "degrees"),
    "voltage": ("volts",), "force": ("newtons",), "pressure": ("pascals", "bar"),
    "angle": ("degrees",), "frequency": ("hertz", "Hz"), "age": ("years",),
}  # fmt: skip
NAMED_UNIT = re.compile(
    r"\bin (square meters|square feet|cubic meters|meters per second|miles per hour|kilometers|"
    r"centimeters|millimeters|meters|miles|feet|inches|kilograms|grams|pounds|minutes|hours|"
    r"seconds|days|weeks|months|years|liters|gallons|degrees|watts|volts|dollars|USD|euros|km|kg|"
    r"cm|mm)\b"
)
NAME_UNITS = {
    "km": "km", "cm": "cm", "kg": "kg", "mm": "mm", "minutes": "minutes", "hours": "hours",
    "days": "days", "weeks": "weeks", "months": "months", "years": "years", "miles": "miles",
}  # fmt: skip
MAGNITUDES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
SMALL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def is_money(name: str) -> bool:
    """Whether the argument is a sum of money: ``loan_amount``, but not ``loan_term``."""
    own = words(name)
    sums = own[-1:] in (["amount"], ["value"], ["total"]) and bool(set(own) & MONEY)
    return sums or bool(set(own[-1:]) & MONEY)


def is_share(name: str) -> bool:
    """Whether the argument is a rate that people give in percent."""
    own = set(words(name))
    return bool(own & RATES) and not own & NOT_SHARES


def is_decimal(name: str, schema: Mapping[str, Any]) -> bool:
    """Whether a share is written as a decimal (0.05), by its schema's description; else 5."""
    if not is_share(name) or schema.get("type") == "integer":
        return False
    most = schema.get("maximum")
    note = str(schema.get("description") or "")
    return bool(DECIMAL.search(note)) or (isinstance(most, int | float) and most <= 1)


def share_note(note: str, generator: random.Random) -> str:
    """The description of a share, made to say how it is written."""
    if DECIMAL.search(note) or PERCENT.search(note):
        return note
    form = generator.choice(("as a decimal, e.g. 0.05 for 5%", "in percent, e.g. 5 for 5%"))
    return f"{note.rstrip('.')} ({form})."


def unit_note(name: str, note: str, generator: random.Random) -> str:
    """The description of a measure, made to name a unit; others as they are."""
    own = words(name)
    units = UNITS.get(own[-1]) if own else None
    if units is None or " in " in note or set(own) & set(NAME_UNITS):
        return note
    return f"{note.rstrip('.')} in {generator.choice(units)}."


def unit(name: str, schema: Mapping[str, Any]) -> str | None:
    """The unit in which the argument is given, if its description or name says so.

    >>> unit("trip_length", {"description": "The length in kilometers."})
    'kilometers'
    """
    found = NAMED_UNIT.search(str(schema.get("description") or ""))
    if found is None:
        note = str(schema.get("description") or "").rstrip(".")
        ends = [u for units in UNITS.values() for u in units if note.endswith(f" in {u}")]
        named = next((NAME_UNITS[w] for w in words(name)[-1:] if w in NAME_UNITS), None)
        return max(ends, key=len) if ends else named
    return found[1]


def spoken_number(
    name: str, schema: Mapping[str, Any], value: float, generator: random.Random
) -> str:
    """The number as a request may say it, with its unit, percent or currency sign.

    >>> spoken_number("tax_rate", {"description": "As a decimal."}, 0.05, random.Random(0))
    '5%'
    """
    if is_share(name):
        return f"{round(value * 100, 4):g}%" if is_decimal(name, schema) else f"{value:g}%"
    if is_money(name) and value >= 1:
        return (
            f"${grouped(value, generator)}"
            if generator.random() < 0.6
            else f"{value:g}"
            if (isinstance(value, float))
            else str(value)
        )
    text = grouped(value, generator)
    measure = unit(name, schema)
    return f"{text} {measure}" if measure else text


def grouped(value: float, generator: random.Random) -> str:
    """Digits, digits in groups, or a magnitude in words; always exactly the value.

    >>> sorted({grouped(213000000, random.Random(s)) for s in range(30)})
    ['213 million', '213,000,000', '213000000']
    """
    forms = [str(value)]
    if isinstance(value, int) and abs(value) >= 10_000:
        forms.append(f"{value:,}")
        size, word = next((m for m in MAGNITUDES if abs(value) >= m[0]), (1, ""))
        if size > 1000 and (value * 100) % size == 0:
            forms += [f"{value / size:g} {word}"] * 2
        elif size == 1000 and value % 1000 == 0:
            forms.append(f"{value // 1000} {word}")
    return generator.choice(forms)


def counted(value: int, generator: random.Random) -> str:
    """A small count, sometimes as a word."""
    word = 1 <= value <= len(SMALL) and generator.random() < 0.35
    return SMALL[value - 1] if word else str(value)
