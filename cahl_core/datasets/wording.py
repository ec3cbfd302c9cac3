"""Requests in words, by rule: an action, mentions of the argument values, a frame around them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from cahl_core.datasets.mentions import Mention
from cahl_core.datasets.names import article, words

SYNONYMS: dict[str, tuple[str, ...]] = {
    "find": ("look up", "search for", "find", "locate"),
    "search": ("search for", "find", "look up"),
    "get": ("get", "give me", "show me", "fetch", "tell me"),
    "retrieve": ("get", "show me", "pull up", "retrieve"),
    "fetch": ("get", "fetch", "show me"),
    "calculate": ("calculate", "work out", "compute", "figure out", "determine"),
    "create": ("create", "make", "set up"),
    "generate": ("generate", "make", "create", "produce"),
    "convert": ("convert", "change"),
    "book": ("book", "reserve"),
    "reserve": ("reserve", "book"),
    "buy": ("buy", "purchase", "get"),
    "analyze": ("analyze", "examine", "look at"),
    "check": ("check", "look up", "verify"),
    "play": ("play", "put on"),
    "update": ("update", "change"),
    "schedule": ("schedule", "set up", "plan"),
}
VERBS = {
    "add", "apply", "arrange", "assess", "assign", "cancel", "change", "choose", "compare",
    "compute", "conduct", "define", "delete", "design", "detect", "determine", "enroll",
    "estimate", "evaluate", "explore", "identify", "implement", "install", "list", "make",
    "manage", "measure", "monitor", "order", "perform", "plan", "predict", "prepare", "process",
    "provide", "purchase", "record", "register", "remove", "rent", "report", "request", "run",
    "select", "send", "set", "simulate", "start", "stop", "submit", "track", "train", "transfer",
    "translate", "visualize", "optimize", "recommend", "initiate", "deploy", "organize", "publish",
    "verify", "validate", "execute", "upload", "download", "write", "hire", "configure", "share",
    "establish", "distribute", "promote", "develop", "extract", "obtain", "diagnose", "control",
    "collect", "scan", "suggest", "calibrate", "coordinate", "adjust", "locate", "acquire",
    "classify", "activate", "produce", "initialize", "gather", "return", "launch", "recruit",
    "compose", "authenticate", "resolve", "read", "notify", "solve", "recognize", "donate",
    "encrypt", "decrypt", "receive", "review", "assemble", "confirm", "allocate", "modify",
    "exchange", "edit", "export", "join", "query", "save", "build", "restore", "open", "close",
    "invite", "reset", "pay", "transform", "summarize", *SYNONYMS,
}  # fmt: skip
FRAMES = (
    "{act}.", "{act}.", "{act}.", "{act}", "Please {act}.", "Can you {act}?", "Could you {act}?",
    "Could you please {act}?", "I need you to {act}.", "I want to {act}.", "I'd like to {act}.",
    "Help me {act}.", "Hi, can you {act}?", "Would you {act} for me?", "I need to {act}.",
    "I'm trying to {act}.", "Hey, {act} please.", "I was hoping you could {act}.",
)  # fmt: skip
QUESTIONS = (
    "What is the {noun}?", "What's the {noun}?", "I want to know the {noun}.",
    "Do you know the {noun}?", "Could you tell me the {noun}?",
)  # fmt: skip
LEADING = re.compile(
    r"^((this|the) (api|endpoint|function|tool|method) |an? (api|function|tool) (to|that) |"
    r"(is )?used to |allows? (the )?users? to |returns? the result of )",
    re.I,
)
GENERIC = re.compile(
    r"( (for|of|at|in|on|to|about|around|by|from))? (a|an|the|any)? ?"
    r"(specific|given|particular|specified|certain|provided)( \w+)?$"
)
NOISE = re.compile(r"`[^`]*`|\*+|\(.*?\)|\busing .*? API\b|\bAPI\b")
CUT = re.compile(
    r"[.,;:\n!?]| for (?:the )?given | based on | using | by | with | within |"
    r" given (?=the |an? |that )| given$| according to | such as | and returns | including "
)
MAX_ACTION_WORDS = 12
# descriptions of tools begin with a verb, unless they begin like this
NO_VERBS = {
    "is", "allows", "api", "to", "the", "a", "an", "this", "tool", "function", "real-time",
    "current", "automatically", "all", "list-of", "it", "for", "given", "one", "your", "no",
}  # fmt: skip
NO_VERB_ENDS = ("tion", "ing", "ment", "ness", "ity", "ed", "ers", "able", "ly", "tics")
JOINTS = {"to", "of", "for", "and", "that", "which", "in", "from", "on", "or", "at", "about"}
DANGLING = re.compile(
    r"(( (and|or|for|of|at|in|on|to|from|with|about))?( (a|an|the|its|their))?)+$"
)
ENDS = ({"from", "source", "base", "origin"}, {"to", "target", "destination"})
NOUNS_OF = {
    "title": {"song", "movie", "book"}, "query": {"song", "product", "location"}, "q": {"location"},
    "destination": {"location", "destination"}, "name": {"artist"}, "city": {"location", "city"},
    "location": {"area", "region", "city"},
}  # fmt: skip


def action(name: str, description: str, generator: random.Random) -> str:
    """What the tool does as an imperative without its object's details, lower case.

    >>> action("get_bmi", "Calculates the body mass index, in kg.", random.Random(1)).split()[-3:]
    ['body', 'mass', 'index']
    """
    clause = NOISE.sub("", LEADING.sub("", description.strip()))
    clause = LEADING.sub("", " ".join(clause.split()))
    clause = LEADING.sub("", CUT.split(clause)[0].strip())
    clause = re.sub(r"^to ", "", clause, flags=re.I)
    clause = re.sub(r" from [A-Z]\w+ to [A-Z]\w+", "", clause)
    text = GENERIC.sub("", clause)
    text = re.sub(r"\b(an?|the) (specific|given|particular|specified|certain|provided) (\w)",
                  lambda m: f"{article(m[3]) if m[1] != 'the' else 'the'} {m[3]}", text)  # fmt: skip
    text = DANGLING.sub("", _shortened(_imperative(text.strip(), words(name))))
    if not 1 < len(text.split()) <= MAX_ACTION_WORDS or not _begins_with_verb(text):
        text = _from_name(name)
    verb, _, rest = text.partition(" ")
    if verb.lower() == "search" and rest.startswith("for "):
        return f"{generator.choice(('search', 'look'))} {rest}"
    others = SYNONYMS.get(verb.lower(), ()) if rest.split()[:1] not in (["for"], ["if"]) else ()
    return f"{generator.choice(others or (verb.lower(),))} {rest}".strip()


def _begins_with_verb(text: str) -> bool:
    first = text.split()[0]
    return first.lower() in VERBS or not (
        first.lower() in NO_VERBS or first.isupper() or first.lower().endswith(NO_VERB_ENDS)
    )


def _from_name(name: str) -> str:
    """The words of a name from its verb on; ``get the`` where it has none."""
    parts = words(name)
    start = next((i for i, word in enumerate(parts) if word in VERBS), None)
    if start is None or start == len(parts) - 1:
        verb = "get" if start is None else parts[start]
        return " ".join([verb, "the", *(p for i, p in enumerate(parts) if i != start)])
    return " ".join([parts[start], "the", *parts[start + 1 :]])


def _imperative(text: str, own: Sequence[str]) -> str:
    """``Retrieves a map`` → ``Retrieve a map``; ``own`` are the words of the tool's name."""
    first, _, rest = text.partition(" ")
    verb = first.lower()
    if not verb.endswith("s") or verb.endswith("ss") or verb in VERBS:
        return text
    stems = (verb[:-3] + "y",) if verb.endswith("ies") else (verb[:-1], verb[:-2])
    known = next((v for v in stems if v in VERBS or v in own[:1]), None)
    return text if known is None else f"{known} {rest}"


def _shortened(text: str) -> str:
    """A long clause up to its last joint within the words allowed."""
    parts = text.split()
    if len(parts) <= MAX_ACTION_WORDS:
        return text
    joints = [i for i, w in enumerate(parts[: MAX_ACTION_WORDS + 1]) if w in JOINTS and i > 2]
    return " ".join(parts[: joints[-1]]) if joints else text


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
        own = words(name) or [name]
        nouns = {own[-1]} | NOUNS_OF.get(own[-1], set())
        for noun in sorted(nouns):
            found = re.search(rf"(?<= )(a|an|the|any|this)( \w+)? {noun}\b(?! \w+ of)", act)
            if name not in woven and found and generator.random() < 0.7:
                act = act[: found.start()] + value + act[found.end() :]
                woven.add(name)
    return act, woven


def clause(act: str, mentions: Sequence[Mention], generator: random.Random) -> str:
    """The action with its mentions, not yet a sentence; phrases with a preposition come first."""
    text = " ".join([act, *(m.phrase for m in mentions if m.bare)])
    named = [m.phrase for m in mentions if not m.bare]
    if not named:
        return text
    body = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    link = generator.choice(("with", "with", "using"))
    return f"{text} {link} {body}"


def request(act: str, mentions: Sequence[Mention], generator: random.Random) -> str:
    """A whole request: one sentence, or one with statements of some values before or after it."""
    facts = [m for m in mentions if m.fact is not None]
    if not facts or generator.random() > 0.35:
        return sentence(clause(act, mentions, generator), generator)
    stated = facts[generator.randrange(len(facts)) :][:3]
    rest = [m for m in mentions if m not in stated]
    texts = [str(m.fact) for m in stated]
    body = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    main = sentence(clause(act, rest, generator), generator)
    main = main if main.endswith((".", "?")) else main + "."
    statement = f"{_up(body)}."
    return f"{statement} {main}" if generator.random() < 0.2 else f"{main} {statement}"


def sentence(text: str, generator: random.Random) -> str:
    """A request around one clause: a command, a polite question, or a question for a quantity."""
    asked = re.match(
        r"(calculate|compute|work out|figure out|determine|get|find|show me|tell me) the (.+)", text
    )
    if asked and generator.random() < 0.35:
        return generator.choice(QUESTIONS).format(noun=asked[2])
    frame = generator.choice(FRAMES)
    wants = text.startswith(("give me", "show me", "tell me"))
    if wants and re.search(r"(want|like|need|trying|Help me|hoping) ?(you )?(to|could)? ?", frame):
        frame = "{act}."
    return _up(frame.format(act=text))


def _up(text: str) -> str:
    return text[0].upper() + text[1:]


def several(clauses: Sequence[str], generator: random.Random) -> str:
    """One request for several things."""
    head, last = ", ".join(clauses[:-1]), clauses[-1]
    style = generator.randrange(7)
    if style == 0:
        return f"{_up(clauses[0])}. " + " ".join(f"Also, {c}." for c in clauses[1:])
    if style == 1:
        return f"Can you {head}, and then {last}?"
    if style == 2:
        return f"I need a few things. {' '.join(_up(c) + '.' for c in clauses)}"
    if style == 3:
        order = ("First", "Then", "After that", "Next", "Finally")
        return " ".join(f"{o}, {c}." for o, c in zip(order, clauses, strict=False))
    if style == 4:
        items = " ".join(f"{n}. {_up(c)}." for n, c in enumerate(clauses, 1))
        return f"Please help me with the following. {items}"
    if style == 5:
        return f"I'd like you to {head}, and also {last}."
    return f"{_up(head)}, and {last}."
