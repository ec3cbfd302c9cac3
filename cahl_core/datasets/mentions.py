"""Values in words: the phrase, or the statement, by which a request gives an argument.

Texts appear verbatim, dates and numbers in forms that give exactly the value, true and false as words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.datasets.amounts import counted, is_share, spoken_number
from cahl_core.datasets.names import article, words
from cahl_core.datasets.values import category, spoken_date

PREPOSITIONS = {
    "origin": "from", "from": "from", "departure": "from", "destination": "to", "to": "to",
    "target": "to", "source": "from", "start": "from", "end": "to", "pickup": "from",
}  # fmt: skip
AUTHORS = {"author", "artist", "director", "composer", "writer", "painter", "singer", "creator"}
KINDS = {"type", "style", "method", "mode", "category", "level", "class", "genre", "kind", "model",
         "algorithm", "format", "system", "season", "language", "cuisine", "color"}  # fmt: skip
DATED = {
    "depart": "leaving on", "return": "returning on", "check in": "checking in on",
    "checkin": "checking in on", "check out": "checking out on", "checkout": "checking out on",
    "start": "starting on", "from": "from", "end": "until", "to": "until", "due": "due on",
    "deadline": "due on", "birth": "born on",
}  # fmt: skip
TIMED = {"start": "from", "end": "until", "from": "from", "to": "until", "pick": "with pick-up at"}


@dataclass(frozen=True, slots=True)
class Mention:
    """A value in words: a phrase that follows the action, and the same as a statement if it can be."""

    phrase: str
    bare: bool = False  # begins with its own preposition
    fact: str | None = None


def mention(
    name: str,
    schema: Mapping[str, Any],
    value: Any,
    generator: random.Random,
    text: str | None = None,
) -> Mention:
    """A phrase that gives the value.

    Args:
        text: the words for the value; ``None`` chooses them (numbers may get units or magnitudes).
    """
    own = [w for w in words(name) if w not in ("is", "has", "value")]
    spoken = (
        " ".join({"id": "ID", "num": "number of", "q": "query"}.get(w, w) for w in own) or "value"
    )
    if isinstance(value, bool) or value in ("True", "False"):
        return Mention(yes_no(words(name), value in (True, "True"), generator), True)
    if isinstance(value, list):
        shown = text or listing(value, generator)
        return Mention(f"{spoken} {shown}", fact=f"the {spoken} {_are(spoken)} {shown}")
    if isinstance(value, int | float):
        return _amount(name, spoken, schema, value, generator, text)
    label = category(name, schema)
    if label == "date" and re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
        return _dated(spoken, text or _when(str(value), generator))
    return _named(words(name), spoken, label, text or natural(str(value), schema), generator)


def _when(value: str, generator: random.Random) -> str:
    return spoken_date(value, generator) if generator.random() < 0.5 else value


def natural(value: str, schema: Mapping[str, Any]) -> str:
    """A choice of an enum as words: ``CHEAPEST_FIRST`` is said ``cheapest first``."""
    if value in (schema.get("enum") or ()) and re.fullmatch(r"[A-Za-z]+(_[A-Za-z]+)+", value):
        return value.replace("_", " ").lower()
    return value


def _are(spoken: str) -> str:
    return "are" if spoken.endswith("s") and not spoken.endswith(("ss", "us", "is")) else "is"


def listing(values: Sequence[Any], generator: random.Random) -> str:
    """Values as people list them: ``a, b and c`` or, for numbers, sometimes ``[1, 2]``."""
    texts = [str(v) for v in values]
    if all(isinstance(v, int | float) for v in values) and generator.random() < 0.4:
        return f"[{', '.join(texts)}]"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


INCLUDED = {
    "include",
    "including",
    "with",
    "show",
    "return",
    "returns",
    "display",
    "add",
    "provide",
}
OFFERED = {"has", "have", "offers", "offer", "serves", "serve"}


def yes_no(own: Sequence[str], value: bool, generator: random.Random) -> str:
    """A true or false argument as a phrase; never the words true and false."""
    own = [w for w in own if w != "flag"] or ["option"]
    head, rest = own[0], " ".join(own[1:])
    if head in INCLUDED and rest:
        return generator.choice(
            (f"including {rest}", f"with {rest}", f"with {rest} included")
            if value
            else (f"without {rest}", f"excluding {rest}", f"leaving out {rest}")
        )
    if head in OFFERED and rest:
        yes, no = (f"with {rest}", f"that {head} {rest}"), (f"without {rest}", f"with no {rest}")
        return generator.choice(yes if value else no)
    if head in ("is", "are", "only") and rest:
        yes = (f"only if {rest}", f"that is {rest}") if head != "only" else (f"{rest} only",) * 2
        return generator.choice(yes if value else (f"that is not {rest}",) * 2)
    if head in ("enable", "use", "allow", "apply", "can") and rest:
        yes, no = (f"with {rest} turned on", f"with {rest}"), (f"without {rest}",) * 2
        return generator.choice(yes if value else no)
    if own[-1].endswith(("ed", "able", "ly", "free", "stop")):
        text = " ".join(own)
        return generator.choice((f"{text} only", f"only {text}") if value else (f"not {text}",) * 2)
    text = " ".join(own)
    return generator.choice(
        (f"with {text}", f"including {text}") if value else (f"without {text}", f"with no {text}")
    )


def _amount(
    name: str,
    spoken: str,
    schema: Mapping[str, Any],
    value: float,
    generator: random.Random,
    text: str | None,
) -> Mention:
    last = spoken.split()[-1]
    said = text or spoken_number(name, schema, value, generator)
    if category(name, schema) == "year" and last == "year":
        return Mention(generator.choice([f"for {said}", f"in {said}", f"in the year {said}"]), True)
    if last.endswith("s") and isinstance(value, int) and said == str(value):
        noun = " ".join(w for w in spoken.split() if w not in ("num", "number", "of", "count"))
        noun = noun[:-1] if value == 1 and noun.endswith("s") and not noun.endswith("ss") else noun
        return Mention(f"for {text or counted(value, generator)} {noun}", True)
    if is_share(name):
        return Mention(
            generator.choice(
                [
                    f"at {article(said)} {said} {spoken}",
                    f"with {article(spoken)} {spoken} of {said}",
                ]
            ),
            True,
            f"the {spoken} {_are(spoken)} {said}",
        )
    an = article(spoken)
    forms = [f"{an} {spoken} of {said}", f"{an} {spoken} of {said}", f"{spoken} {said}"]
    return Mention(generator.choice(forms), fact=f"the {spoken} {_are(spoken)} {said}")


def _dated(spoken: str, when: str) -> Mention:
    own = spoken.split()
    for key, phrase in DATED.items():
        if key in spoken if len(key) > 5 else key in own:
            return Mention(f"{phrase} {when}", True)
    if spoken in ("date", "day", "on date"):
        return Mention(f"on {when}", True)
    return Mention(f"with {spoken} {when}", True, f"the {spoken} {_are(spoken)} {when}")


def _named(
    own: Sequence[str], spoken: str, label: str, value: str, generator: random.Random
) -> Mention:
    fact = f"the {spoken} {_are(spoken)} {value}"
    if label in ("place", "country", "currency", "language", "unit"):
        found = next((p for w, p in PREPOSITIONS.items() if w in own), None)
        if found is not None:
            return Mention(f"{found} {value}", True)
        if label in ("place", "country"):
            return Mention(generator.choice([f"in {value}", f"in {value}", f"for {value}"]), True)
        return Mention(f"in {value}", True, fact)
    if label == "time":
        start = next((p for w, p in TIMED.items() if w in own), "at")
        return Mention(f"{start} {value}", True)
    if label == "person" and set(own) & AUTHORS:
        return Mention(f"by {value}", True, fact)
    if label == "person":
        return Mention(
            generator.choice([f"for {value}", f"with {value} as the {spoken}"]), True, fact
        )
    if label == "id":
        bare = own[:-1] in (["from"], ["to"])  # "from X1" would be a place
        short = spoken if bare else re.sub(r" (ID|code|number)$", "", spoken)
        return Mention(generator.choice([f"{spoken} {value}", f"{short} {value}"]), False, fact)
    if label in ("query", "text", "title", "subject"):
        forms = [f"'{value}'", f'"{value}"', f"for '{value}'", f"with the {spoken} '{value}'"]
        chosen = generator.choice(forms)
        return Mention(chosen, True, f"the {spoken} is '{value}'")
    if own[-1] in KINDS and len(value.split()) <= 3:
        forms = [f"the {value} {spoken}", f"the '{value}' {spoken}", f"{spoken} {value}"]
        return Mention(generator.choice(forms), fact=fact)
    forms = [f"{spoken} {value}", f"the {spoken} '{value}'", f"{value} as the {spoken}"]
    return Mention(generator.choice(forms), fact=fact)
