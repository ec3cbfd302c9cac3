"""Names of tools and arguments as words, and the styles in which names are written."""

from __future__ import annotations

import re
from functools import lru_cache

# what makes a name stand out from prose
IDENTIFIER = re.compile(r"[A-Za-z0-9][_.][A-Za-z0-9]|[a-z0-9][A-Z]")


def title(name: str) -> str:
    """A tool's name as words.

    >>> title("Hotels.searchByCity_v2")
    'Hotels search by city v2'
    """
    return " ".join(words(name)).capitalize()


def words(name: str) -> list[str]:
    """The lower-case words of a snake_case, camelCase or dotted name.

    >>> words("getHTTPStatus_code")
    ['get', 'http', 'status', 'code']
    """
    return list(_words(name))


@lru_cache(maxsize=1 << 16)
def _words(name: str) -> tuple[str, ...]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", spaced)
    return tuple(word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word)


def article(text: str) -> str:
    """The indefinite article before ``text``.

    >>> article("8% rate"), article("hotel")
    ('an', 'a')
    """
    return "an" if text[:1].lower() in tuple("aeiou8") else "a"
