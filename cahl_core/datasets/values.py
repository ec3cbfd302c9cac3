"""What an argument means, and plausible values for it: the basis of requests written by rule.

The meaning (`category`) is read from the argument's name, type and description. Values come from
small pools of general words written for this project, or are drawn (numbers, dates, identifiers).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets.amounts import is_decimal, is_money, is_share
from cahl_core.datasets.names import words
from cahl_core.datasets.pools import POOLS

# The first line that shares a word with the argument's name decides.
CATEGORY_WORDS: tuple[tuple[str, str], ...] = (
    ("date", "date day checkin checkout birthdate deadline"),
    ("time", "time hour"),
    ("email", "email mail"),
    ("url", "url link website uri"),
    ("phone", "phone telephone mobile"),
    ("year", "year"),
    ("id", "id key token slug code isbn cik number reference"),
    ("currency", "currency"),
    ("country", "country nation"),
    (
        "place",
        "city location place destination origin area address region town airport where from to",
    ),
    ("language", "language lang"),
    ("unit", "unit units"),
    ("symbol", "symbol ticker stock"),
    ("company", "company brand employer airline carrier"),
    ("genre", "genre"),
    ("cuisine", "cuisine"),
    ("food", "ingredient ingredients food dish items products"),
    ("device", "device speaker"),
    ("shape", "shape"),
    ("color", "color colour"),
    ("sport", "sport"),
    ("text", "text message content sentence body description data note lyrics"),
    ("query", "query keyword keywords search term topic interests prompt q"),
    ("title", "title movie book song album"),
    ("subject", "subject task event reminder meeting"),
    ("person", "name person user username artist author director attendees contact participants"),
)
CATEGORIES = tuple(label for label, _ in CATEGORY_WORDS)
HINTS = ("currency", "unit", "language", "country", "place", "company", "genre", "title", "person")
# the name alone does not tell; the description may
AMBIGUOUS = {
    "from",
    "to",
    "query",
    "q",
    "name",
    "target",
    "source",
    "base",
    "keyword",
    "term",
    "text",
}
VENUES = {"restaurant", "hotel", "theater", "property", "event", "venue", "salon", "house"}
COUNTS = {
    "adults", "amount", "children", "count", "guests", "limit", "max", "num", "number", "page",
    "passengers", "people", "qty", "quantity", "results", "rooms", "seats", "size", "tickets",
}  # fmt: skip
ROUND = (5_000, 12_000, 40_000, 250_000, 1_200_000, 3_000_000, 45_000_000, 213_000_000)
CROWDS = {"population", "inhabitants", "views", "followers", "subscribers", "users"}
RANGES = {"age": (18, 80), "temperature": (5, 38), "page": (1, 6), "hour": (0, 23), "term": (2, 30)}
# a "time" that is no time of day, a "name" that is no person's
SPANS = {"period", "frame", "range", "zone", "unit", "step", "series", "limit", "interval", "span"}
PEOPLE = {
    "person", "user", "artist", "author", "director", "attendee", "contact", "participant",
    "customer", "patient", "student", "guest", "employee", "client", "passenger", "recipient",
    "player", "owner", "first", "last", "full", "username", "attendees", "contacts",
    "participants",
}  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


NAMED = {label: frozenset(named.split()) for label, named in CATEGORY_WORDS}


def category(name: str, schema: Mapping[str, Any]) -> str:
    """What an argument means: a key of `POOLS`, ``date``, ``id``, ``number``, … or ``other``."""
    if schema.get("enum"):
        return "enum"
    kind = schema.get("type")
    own = words(name)
    if kind == "boolean":
        return "boolean"
    if kind in ("integer", "number"):
        return "year" if "year" in own else "number"
    if "check" in own and set(own) & {"in", "out"} and "time" not in own:
        return "date"
    if set(own) & VENUES and (len(own) == 1 or own[-1] == "name"):
        return "venue"
    note = re.findall(r"[a-z]+", str(schema.get("description") or "").lower())
    if set(own) <= AMBIGUOUS and (found := _first_category(note, HINTS)) is not None:
        return found
    found = _first_category(own, CATEGORIES) or "other"
    span = found == "time" and bool(set(own) & SPANS)
    span |= found == "date" and bool({"week", "days"} & set(own))
    thing = found == "person" and "name" in own and len(own) > 1 and not set(own) & PEOPLE
    return "other" if span or thing else found


def _first_category(found: Sequence[str], labels: Sequence[str]) -> str | None:
    keys = {w for word in found for w in (word, word.removesuffix("s"))}
    return next(
        (c for c, named in NAMED.items() if c in labels and not keys.isdisjoint(named)), None
    )


def sample(
    name: str, schema: Mapping[str, Any], observed: Sequence[Any], generator: random.Random
) -> Any:
    """A value for the argument that satisfies ``schema``; ``None`` if none can be thought of."""
    kind = schema.get("type")
    if kind == "array":
        return _array(name, schema, observed, generator)
    if schema.get("enum"):
        return generator.choice(list(schema["enum"]))
    if kind == "boolean":
        return generator.random() < 0.6
    if kind in ("integer", "number"):
        return _number(name, schema, observed, generator)
    if kind not in ("string", None):
        return None
    return _text(name, schema, [v for v in observed if isinstance(v, str)], generator)


def _array(
    name: str, schema: Mapping[str, Any], observed: Sequence[Any], generator: random.Random
) -> Any:
    items = schema.get("items")
    if not isinstance(items, Mapping) or items.get("type") not in ("string", "integer", "number"):
        return None
    flat = [leaf for value in observed if isinstance(value, list) for leaf in value]
    values = [sample(name, items, flat, generator) for _ in range(generator.randint(2, 4))]
    unique = list(dict.fromkeys(v for v in values if v is not None))
    return unique or None


def _number(
    name: str, schema: Mapping[str, Any], observed: Sequence[Any], generator: random.Random
) -> Any:
    own = set(words(name))
    whole = schema.get("type") == "integer"
    seen = [v for v in observed if isinstance(v, int | float) and not isinstance(v, bool) and v > 0]
    bounds = next((RANGES[w] for w in words(name) if w in RANGES), None)
    if "year" in own:
        value: float = generator.randint(1985, 2025)
    elif is_share(name):
        value = generator.choice([generator.randint(2, 25), round(generator.uniform(1, 15), 1)])
        value = round(value / 100, 4) if is_decimal(name, schema) else value
    elif bounds:
        value = generator.randint(*bounds)
    elif is_money(name) or own == {"amount"}:
        value = generator.choice([5, 20, 100, 250, 1000, 25_000]) * generator.randint(1, 40)
    elif own & COUNTS:
        value = generator.randint(1, 12)
    elif own & CROWDS or (seen and max(seen) >= 100_000):
        value = generator.choice(ROUND)
    elif seen:
        value = generator.choice(seen) * generator.choice([0.5, 1, 1, 1.5, 2, 3])
    else:
        value = generator.choice([generator.randint(1, 20), generator.randint(20, 200)])
    low, high = schema.get("minimum"), schema.get("maximum")
    value = max(value, low) if isinstance(low, int | float) else value
    value = min(value, high) if isinstance(high, int | float) else value
    if whole or float(value).is_integer():
        return max(round(value), 1) if whole else int(value)
    return round(value, 4 if value < 1 else 2)


def _text(
    name: str, schema: Mapping[str, Any], observed: Sequence[str], generator: random.Random
) -> str | None:
    label = category(name, schema)
    short = [v for v in observed if sayable_text(v) and label not in ("id", "date", "time")]
    if short and generator.random() < (0.35 if label in CATEGORIES else 1):
        return generator.choice(short)
    if label == "date":
        month, day = generator.randint(1, 12), generator.randint(1, 28)
        born = "birth" in name.lower()
        year = generator.randint(1950, 2012) if born else generator.randint(2023, 2026)
        return f"{year}-{month:02}-{day:02}"
    if label == "time":
        return f"{generator.randint(6, 22):02}:{generator.choice(['00', '15', '30', '45'])}"
    if label == "id":
        letters = "".join(generator.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(2))
        digits = generator.randint(100, 99999)
        return generator.choice([f"{letters}{digits}", f"{letters}-{digits}", str(digits)])
    if label == "year":
        return str(generator.randint(1985, 2025))
    if label == "email":
        return f"{generator.choice(POOLS['person']).split()[0].lower()}@example.com"
    if label == "url":
        return f"https://www.example.com/{generator.choice(POOLS['query']).replace(' ', '-')}"
    if label == "phone":
        return f"555-{generator.randint(100, 999)}-{generator.randint(1000, 9999)}"
    pool = POOLS.get(label)
    return generator.choice(pool) if pool else generator.choice(short) if short else None


def sayable_text(value: str) -> bool:
    """Whether a request can hold the text as it is: short, trimmed, no path, key or field of a result.

    >>> sayable_text("Hair salons in Paris"), sayable_text("FindProvider.phone_number")
    (True, False)
    """
    opaque = len(value) > 16 and " " not in value and "@" not in value
    field = re.fullmatch(r"[A-Za-z_]+\.[A-Za-z_]+", value) is not None and "_" in value
    return value == value.strip() != "" and len(value) <= 40 and not opaque and not field


def spoken_date(value: str, generator: random.Random) -> str:
    """An ISO date as people write it.

    >>> spoken_date("2024-10-05", random.Random(0)) in ("October 5, 2024", "5 October 2024")
    True
    """
    year, month, day = value.split("-")
    name = MONTHS[int(month) - 1]
    return generator.choice([f"{name} {int(day)}, {year}", f"{int(day)} {name} {year}"])
