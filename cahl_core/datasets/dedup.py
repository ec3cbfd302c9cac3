"""Near duplicates among requests: MinHash signatures by ``datasketch``, compared in bands with numpy.

A signature is computed where the record is read (any process); the comparison runs once over all of
them, vectorised, so a million requests need some hundred megabytes and no index in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 64
SHINGLE = 3  # words
BANDS = (
    (16, 4),
    (8, 8),
    (4, 16),
)  # bands × rows; the last whose own threshold is below the asked one

Signatures = NDArray[np.uint32]


def shingles(words: Sequence[str]) -> set[bytes]:
    """All runs of three words; a shorter text is one shingle."""
    count = max(1, len(words) - SHINGLE + 1)
    return {" ".join(words[i : i + SHINGLE]).encode("utf-8") for i in range(count)}


def signatures(texts: Iterable[Sequence[str]]) -> Signatures:
    """``[texts, 64]`` MinHash signatures; the share of equal columns estimates Jaccard similarity."""
    import xxhash
    from datasketch import MinHash

    rows = [
        made.hashvalues.astype(np.uint32)
        for made in MinHash.generator(
            [shingles(words) for words in texts],
            num_perm=PERMUTATIONS,
            hashfunc=xxhash.xxh32_intdigest,
        )
    ]
    return np.stack(rows) if rows else np.empty((0, PERMUTATIONS), np.uint32)


def near_duplicates(found: Signatures, threshold: float) -> dict[int, int]:
    """Which rows repeat an earlier row that stays, and which one: ``{later: earlier}``.

    Guarantees: the earlier row of every pair is not itself removed; their estimated similarity is at
    least ``threshold``. Rows are compared when a band of their signatures is equal, each with the
    first rows of its band that stay, so a pair far above the threshold is found almost surely and
    one at the threshold with the probability that MinHash banding gives.
    """
    bands, rows = _banding(threshold)
    removed: dict[int, int] = {}
    pairs = [_candidates(found[:, b * rows : (b + 1) * rows]) for b in range(bands)]
    joined = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    if not len(joined):
        return removed
    similar = np.empty(len(joined), np.bool_)
    for start in range(0, len(joined), 1 << 18):
        part = joined[start : start + (1 << 18)]
        equal = (found[part[:, 0]] == found[part[:, 1]]).mean(axis=1)
        similar[start : start + (1 << 18)] = equal >= threshold
    for later, earlier in joined[similar].tolist():  # sorted by the later row
        if later not in removed and earlier not in removed:
            removed[later] = earlier
    return removed


def _banding(threshold: float) -> tuple[int, int]:
    """The fewest bands whose 50 % point lies below ``threshold``."""
    for bands, rows in reversed(BANDS):
        if (1 / bands) ** (1 / rows) <= threshold:
            return bands, rows
    return BANDS[0]


def _candidates(band: Signatures) -> NDArray[np.int64]:
    """``[pairs, 2]`` (later, earlier): each row with the first and the previous row of its bucket."""
    keys = np.ascontiguousarray(band).view(np.dtype((np.void, band.shape[1] * 4))).ravel()
    order = np.argsort(keys, kind="stable")
    same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later = np.flatnonzero(same)
    first = np.stack([order[later], order[starts[later]]], axis=1)
    previous = np.stack([order[later], order[later - 1]], axis=1)
    return np.concatenate([first, previous]).astype(np.int64)
