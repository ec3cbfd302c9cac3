"""One file over HTTP: retried with back-off, resumed where it was cut, renamed only when it is whole."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from cahl_core.datasets.wheels import check_sum
from cahl_core.errors import ChecksumError, SourceError
from cahl_core.files import storage_errors
from cahl_core.progress import progress

MIB = 2**20
BLOCK = 2**16  # at most this much is lost at a cut
BACKOFF_SECONDS = 0.5  # doubled after every attempt
BACKOFF_MOST = 16.0
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
BAR_BYTES = 4 * MIB
FINAL = (400, 401, 403, 404, 405, 410, 451)  # asking again changes nothing
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class CutError(Exception):
    """An attempt that ended early and is worth another."""


def download(
    url: str, target: Path, *, name: str, retries: int, expected: str | None = None
) -> Path:
    """``target`` with the content of ``url``; bytes of an earlier, cut attempt are not fetched again.

    Unfinished bytes stay in ``<target>.partial``. A file with another sum than ``expected``, or longer
    than the server said, is set aside as ``<target>.rejected``.

    Args:
        name: the source, for messages. retries: attempts after the first.

    Raises:
        ChecksumError: the content is not the declared one. SourceError: it cannot be had.
    """
    partial = target.with_name(f"{target.name}.partial")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
        for attempt in range(retries + 1):
            if attempt:
                time.sleep(min(BACKOFF_SECONDS * 2 ** (attempt - 1), BACKOFF_MOST))
            try:
                _attempt(url, partial, name)
                break
            except CutError as error:
                reason = str(error)
        else:
            had = partial.stat().st_size if partial.exists() else 0
            raise SourceError(f"{url}: {reason} ({retries + 1} attempts, {had} bytes so far)")
        try:
            check_sum(partial, expected, name)
        except ChecksumError:
            partial.replace(target.with_name(f"{target.name}.rejected"))
            raise
        partial.replace(target)
    return target


def _attempt(url: str, partial: Path, name: str) -> None:
    """Adds to ``partial`` until it is whole."""
    import requests
    import urllib3

    offset = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # else a length counts compressed bytes
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing follows what is there, or the file changed
                _finish_or_restart(response, partial, offset)
                return
            _refuse_status(response, url)
            _receive(response, partial, offset, name)
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise CutError(_why(error)) from error


def _why(error: Exception) -> str:
    """The innermost reason: requests wraps urllib3, which wraps the socket's error."""
    reason = getattr(error.args[0] if error.args else None, "reason", None) or error
    return f"{type(error).__name__}: {str(reason).splitlines()[0][:200]}"


def _finish_or_restart(response: Any, partial: Path, offset: int) -> None:
    stated = response.headers.get("Content-Range", "").rpartition("/")[2]
    if stated != str(offset):
        partial.unlink()
        raise CutError("the server cannot go on from what is there; starting again")


def _refuse_status(response: Any, url: str) -> None:
    status = response.status_code
    if status in FINAL:
        raise SourceError(f"{url}: the server answers {status} {response.reason}")
    if status not in (200, 206):
        raise CutError(f"the server answers {status} {response.reason}")
    if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
        raise SourceError(f"{url}: the server sends {encoding}, plain bytes were asked for")


def _receive(response: Any, partial: Path, offset: int, name: str) -> None:
    """Writes the body behind ``offset``, or from the start where the server ignored the range."""
    start = RANGE.match(response.headers.get("Content-Range", ""))
    resumed = response.status_code == 206 and start is not None and int(start[1]) == offset
    if response.status_code == 206 and not resumed:
        partial.unlink(missing_ok=True)
        raise CutError("the server sent another range than was asked for; starting again")
    begin = offset if resumed else 0
    length = response.headers.get("Content-Length", "")
    total = begin + int(length) if length.isdigit() else None
    with partial.open("ab" if resumed else "wb") as out:
        _copy(response, out, begin, total, name)
    _check_length(partial, total, response.url)


def _copy(response: Any, out: Any, begin: int, total: int | None, name: str) -> None:
    blocks = response.raw.stream(BLOCK, decode_content=False)
    if total is None or total < BAR_BYTES:
        out.writelines(blocks)
        return
    written = begin
    with progress(f"{name} (MiB)", total // MIB) as bar:
        for block in blocks:
            written += out.write(block)
            if written // MIB > bar.done:
                bar.advance(written // MIB - bar.done)


def _check_length(partial: Path, total: int | None, url: str) -> None:
    size = partial.stat().st_size
    if total is None or size == total:
        return
    if size < total:
        raise CutError(f"the connection ended after {size} of {total} bytes")
    rejected = partial.with_name(partial.name.removesuffix(".partial") + ".rejected")
    partial.replace(rejected)
    raise SourceError(
        f"{url}: {size} bytes came, the server had said {total}", f"kept apart as {rejected}"
    )
