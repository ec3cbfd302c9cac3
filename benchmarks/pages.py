"""Tables of a page that are made from results: each stands between two comments that name it."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fill(text: str, name: str, lines: Iterable[str]) -> str:
    """``text`` with ``lines`` between ``<!-- name -->`` and ``<!-- /name -->``; everything else stays."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n".join(lines)
    return pattern.sub(lambda m: f"{m[1]}{body}\n{m[2]}", text)
