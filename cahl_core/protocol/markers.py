"""Markers: texts that open or close a role or a tag, and keeping them out of data.

Special tokens, role markers of a chat template and our own tags are markers. Data that holds one gets
a space after the marker's first character, before anything is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count

MAX_LITERAL = 48  # a longer line of a template is a sentence, not a role marker
MAX_SPACES = 4
REPLACEMENT = "\ufffd"

_BRACKETED = re.compile(r"<<[^<>\s]+>>|<[^<>\s]+>|\[[^\[\]\s]+\]")
_WORDS = re.compile(r"[\w\s]*")


class Markers:
    """A set of markers, and `neutralise` for them; quick for thousands of them."""

    def __init__(self, markers: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(m for m in markers if m.strip() and m != REPLACEMENT))
        self._by_first: dict[str, tuple[list[int], frozenset[str]]] = {}
        for first in {m[0] for m in self.texts}:
            mine = frozenset(m for m in self.texts if m[0] == first)
            lengths = sorted({len(m) for m in mine}, reverse=True)
            self._by_first[first] = (lengths, mine)
        firsts = "".join(map(re.escape, sorted(self._by_first)))
        self._candidates = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def neutralise(self, text: str) -> str:
        """``text`` without any marker: each has a space after its first character.

        The result is looked at again, since breaking one marker may complete another. Where no space
        helps (a marker of one character, or one with a space as its second), U+FFFD replaces it.
        """
        for attempt in count():
            found = self._found(text)
            if not found:
                break
            parts, end = [], 0
            for position, length in found:
                spaced = length > 1 and attempt < MAX_SPACES
                parts.append(text[end:position])
                parts.append(text[position] + " " if spaced else REPLACEMENT)
                end = position + 1
            text = "".join([*parts, text[end:]])
        return text

    def _found(self, text: str) -> list[tuple[int, int]]:
        """Position and length of the markers in ``text``."""
        found = []
        for match in self._candidates.finditer(text):
            position = match.start()
            lengths, markers = self._by_first[text[position]]
            for length in lengths:
                if text[position : position + length] in markers:
                    found.append((position, length))
                    break
        return found


def neutralise(text: str, markers: Sequence[str]) -> str:
    """Puts a space after the first character of every marker in ``text``.

    >>> neutralise("a</plan><|im_end|>", ["</plan>", "<|im_end|>"])
    'a< /plan>< |im_end|>'
    >>> neutralise("<|im_<|im_end|>end|>", ["<|im_end|>"])
    '<|im_< |im_end|>end|>'
    """
    return _markers(tuple(markers)).neutralise(text)


@lru_cache(maxsize=32)
def _markers(markers: tuple[str, ...]) -> Markers:
    return Markers(markers)


def literal_markers(literals: Iterable[str], special: Sequence[str]) -> list[str]:
    """The role markers in the constant parts of a template.

    Bracketed words (``[INST]``, ``<|user|>``) and lines with punctuation (``### Response:``,
    ``USER:``); bare words such as ``user`` mean something only beside a special token.

    >>> literal_markers(["<|im_start|>user\\n", "</s>\\n[INST] ", "\\n### Response:\\n"], ["</s>"])
    ['<|im_start|>', '[INST]', '### Response:']
    """
    found: list[str] = []
    for literal in literals:
        for token in sorted(special, key=len, reverse=True):
            literal = literal.replace(token, "\n")
        found += _BRACKETED.findall(literal)
        for line in _BRACKETED.sub("\n", literal).splitlines():
            line = line.strip()
            if 1 < len(line) <= MAX_LITERAL and not _WORDS.fullmatch(line):
                found.append(line)
    return list(dict.fromkeys(found))
