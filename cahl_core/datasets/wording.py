"""Requests in words, by rule: an action, mentions of the argument values, a frame around them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets.names import title, words
from cahl_core.datasets.values import category, spoken_date

SYNONYMS: dict[str, tuple[str, ...]] = {
    "find": ("look up", "search for", "find", "locate"),
    "search": ("search for", "find", "look up"),
    "get": ("get", "give me", "show me", "fetch", "tell me"),
    "retrieve": ("get", "show me", "pull up", "retrieve"),
    "fetch": ("get", "fetch", "show me"),
    "calculate": ("calculate", "work out", "compute", "figure out", "determine"),
    "create": ("create", "make", "set up", "add"),
    "generate": ("generate", "make", "create", "produce"),
    "convert": ("convert", "change"),
    "book": ("book", "reserve"),
    "reserve": ("reserve", "book"),
    "buy": ("buy", "purchase", "get"),
    "send": ("send", "write"),
    "schedule": ("schedule", "set up", "plan"),
    "analyze": ("analyze", "examine", "look at"),
    "check": ("check", "look up", "verify"),
    "play": ("play", "put on"),
    "translate": ("translate",),
    "add": ("add", "put"),
    "set": ("set",),
}
THIRD_PERSON = re.compile(
    r"^(retriev|search|fetch|generat|calculat|return|convert|provid|creat|translat|get|find|check"
    r"|analyz|comput|send|list|add|set|play|book)(es|s)\b",
    re.I,
)
FRAMES = (
    "{act}.", "{act}.", "{act}.", "Please {act}.", "Can you {act}?", "Could you {act}?",
    "Could you please {act}?", "I need you to {act}.", "I want to {act}.", "I'd like to {act}.",
    "Help me {act}.", "Hi, can you {act}?", "Would you {act} for me?", "{act}, please.",
    "I'm planning something and need to {act}.", "For a project of mine, {act}.",
)  # fmt: skip
QUESTIONS = ("What is the {noun}?", "What's the {noun}?", "I want to know the {noun}.")
PREPOSITIONS = {
    "origin": "from", "from": "from", "departure": "from", "destination": "to", "to": "to",
    "target": "to", "source": "from",
}  # fmt: skip
BARE = ("in ", "for ", "from ", "to ", "on ", "at ", "with", "'", '"', "incl", "excl", "leaving",
        "returning", "checking", "starting", "ending")  # fmt: skip
QUANTITY = re.compile(
    r"(calculate|compute|work out|figure out|determine|get|find|show me|tell me) the (.+)"
)
MAX_ACTION_WORDS = 12
LEADING = re.compile(
    r"^(this (api|endpoint|function|tool) |an? (api|function|tool) (to|that) )", re.I
)
GENERIC = re.compile(
    r"( (for|of|at|in|on|to|about|around|by|from))? (a|an|the|any)? ?"
    r"(specific|given|particular|specified|certain|provided)( \w+)?$"
)
NOISE = re.compile(r"`[^`]*`|\*+|\(.*?\)|\busing .*? API\b|\bAPI\b")


def action(name: str, description: str, generator: random.Random) -> str:
    """What the tool does as an imperative without its object's details, lower case.

    >>> action("get_bmi", "Calculates the body mass index, in kg.", random.Random(1)).split()[-3:]
    ['body', 'mass', 'index']
    """
    clause = LEADING.sub("", NOISE.sub("", description).strip())
    clause = re.split(r"[.,;:\n]| based on | using | by | with | within ", clause)[0]
    text = GENERIC.sub("", re.sub(r"^to ", "", " ".join(clause.split()), flags=re.I))
    if not 1 < len(text.split()) <= MAX_ACTION_WORDS:
        text = _from_name(name)
    text = THIRD_PERSON.sub(lambda m: _base(m[1]), text)
    verb, _, rest = text.partition(" ")
    if verb.lower() == "search" and rest.startswith("for "):
        return f"{generator.choice(('search', 'look'))} {rest}"
    verb = generator.choice(SYNONYMS.get(verb.lower(), (verb.lower(),)))
    return f"{verb} {rest}".strip()


def _from_name(name: str) -> str:
    """The words of a name from its verb on; ``get`` where it has none."""
    parts = title(name).lower().split()
    start = next((i for i, word in enumerate(parts) if word in SYNONYMS), None)
    return " ".join(["get", "the", *parts] if start is None else parts[start:])


def weave(act: str, said: Mapping[str, str], generator: random.Random) -> tuple[str, set[str]]:
    """Puts values where the action speaks of "a city" or "from one unit to another".

    Args:
        said: text values by their argument's name.

    Returns:
        The action, and the arguments whose value it now names.
    """
    woven: set[str] = set()
    pair = re.search(r"from one \w+ to another", act)
    if pair:
        ends = [next((n for n in said if set(words(n)) & keys), None) for keys in ENDS]
        if ends[0] is not None and ends[1] is not None:
            act = act.replace(pair[0], f"from {said[ends[0]]} to {said[ends[1]]}")
            woven |= {ends[0], ends[1]}
    for name, value in said.items():
        nouns = {words(name)[-1]} | NOUNS_OF.get(words(name)[-1], set())
        for noun in sorted(nouns):
            found = re.search(rf"\b(a|an|the|any|this)( \w+)? {noun}\b(?! \w+ of)", act)
            if name not in woven and found and generator.random() < 0.7:
                act = act[: found.start()] + value + act[found.end() :]
                woven.add(name)
    return act, woven


ENDS = ({"from", "source", "base", "origin"}, {"to", "target", "destination"})
NOUNS_OF = {
    "title": {"song", "movie", "book"}, "query": {"song", "product", "location"}, "q": {"location"},
    "destination": {"location", "destination"}, "name": {"artist"}, "city": {"location", "city"},
}  # fmt: skip


def _base(stem: str) -> str:
    stem = stem.lower()
    return stem + "e" if stem in ("retriev", "generat", "calculat", "provid", "creat", "translat",
                                  "analyz", "comput") else stem  # fmt: skip


def mention(name: str, schema: Mapping[str, Any], value: Any, generator: random.Random) -> str:
    """A phrase that gives the value; texts and numbers appear in it verbatim."""
    label = category(name, schema)
    spoken = " ".join(w for w in words(name) if w not in ("q", "is", "has")) or "value"
    if isinstance(value, bool):
        return _yes_no(spoken, value, generator)
    if isinstance(value, list):
        return f"{spoken} {listing(value, generator)}"
    if isinstance(value, int | float):
        return _amount(spoken, value, generator)
    if label == "date" and re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
        return _dated(spoken, str(value), generator)
    return _named(spoken, label, str(value), generator)


def listing(values: Sequence[Any], generator: random.Random) -> str:
    """Values as people list them: ``a, b and c`` or, for numbers, sometimes ``[1, 2]``."""
    texts = [str(v) for v in values]
    if all(isinstance(v, int | float) for v in values) and generator.random() < 0.4:
        return f"[{', '.join(texts)}]"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _yes_no(spoken: str, value: bool, generator: random.Random) -> str:
    spoken = re.sub(r"^(include|including|with|enable|use|show|return|offers|flag)\s+", "", spoken)
    positive = (f"including {spoken}", f"with {spoken}", f"with {spoken} turned on")
    negative = (f"without {spoken}", f"excluding {spoken}", f"with {spoken} turned off")
    return generator.choice(positive if value else negative)


def _amount(spoken: str, value: float, generator: random.Random) -> str:
    forms = [f"{_article(spoken)} {spoken} of {value}", f"{spoken} {value}", f"{spoken} of {value}"]
    forms += [f"{spoken} set to {value}", f"{value} as the {spoken}", f"{spoken} = {value}"]
    last = spoken.split()[-1]
    if last.endswith("s") and isinstance(value, int):
        forms += [f"{value} {last}"] * 2
    return generator.choice(forms)


def _article(text: str) -> str:
    return "an" if text[:1] in "aeiou" else "a"


DATED = {
    "depart": "leaving on", "return": "returning on", "check in": "checking in on",
    "checkin": "checking in on", "check out": "checking out on", "checkout": "checking out on",
    "start": "starting on", "end": "ending on",
}  # fmt: skip


def _dated(spoken: str, value: str, generator: random.Random) -> str:
    when = spoken_date(value, generator) if generator.random() < 0.4 else value
    for key, phrase in DATED.items():
        if key in spoken:
            return f"{phrase} {when}"
    return f"on {when}" if spoken == "date" else f"{spoken} {when}"


def _named(spoken: str, label: str, value: str, generator: random.Random) -> str:
    own = spoken.split()
    if label in ("place", "currency", "language", "unit"):
        found = next((p for w, p in PREPOSITIONS.items() if w in own), None)
        if found is not None:
            return f"{found} {value}"
        if label == "place":
            return generator.choice([f"in {value}", f"for {value}", f"{spoken} {value}"])
    if label == "time":
        return generator.choice([f"at {value}", f"{spoken} {value}"])
    if label in ("query", "text", "title", "subject"):
        return generator.choice(
            [f"'{value}'", f'"{value}"', f"{spoken} '{value}'", f"for '{value}'"]
        )
    forms = [f"{spoken} {value}", f"{spoken} '{value}'", f"{value} as the {spoken}"]
    return generator.choice([*forms, f"the {spoken} {value}", f"{spoken}: {value}"])


def clause(act: str, mentions: Sequence[str], generator: random.Random) -> str:
    """The action with its mentions, not yet a sentence."""
    if not mentions:
        return act
    first = mentions[0]
    bare = first.startswith(BARE)
    link = " " if bare else generator.choice([" for ", " with ", " using ", ", "])
    body = first if len(mentions) == 1 else f"{', '.join(mentions[:-1])} and {mentions[-1]}"
    return f"{act}{link}{body}"


def sentence(text: str, generator: random.Random) -> str:
    """A request around one clause: a command, a polite question, or a question for a quantity."""
    asked = re.match(
        r"(calculate|compute|work out|figure out|determine|get|find|show me|tell me) the (.+)", text
    )
    if asked and generator.random() < 0.35:
        return generator.choice(QUESTIONS).format(noun=asked[2])
    frame = generator.choice(FRAMES)
    wants = text.startswith(("give me", "show me", "tell me"))
    if wants and re.search(r"(want|like|need|Help me|and need) ?(you )?(to )?\{act\}", frame):
        frame = "{act}."
    result = frame.format(act=text)
    return result[0].upper() + result[1:]


def several(clauses: Sequence[str], generator: random.Random) -> str:
    """One request for several things."""

    def up(text: str) -> str:
        return text[0].upper() + text[1:]

    style = generator.randrange(4)
    if style == 0:
        return f"{up(clauses[0])}. " + " ".join(f"Also, {c}." for c in clauses[1:])
    if style == 1:
        return f"Can you {', then '.join(clauses)}?"
    if style == 2:
        return f"I need a few things. {' '.join(up(c) + '.' for c in clauses)}"
    head = ", ".join(clauses[:-1])
    return f"{up(head)}, and {clauses[-1]}."
