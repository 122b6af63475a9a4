"""Trying again while the hub is in trouble, and saying what is wrong where that does not help."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils._http import parse_ratelimit_headers

from align import credentials, hub
from align.errors import StageFailed

Done = TypeVar("Done")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries, beside those that the client makes of single requests."""

TEMPORARY = (408, 409, 412, 429, 500, 502, 503, 504)
"""Statuses after which it is tried again. 409 and 412: somebody else has committed meanwhile."""

FULL = (402, 413, 507)
"""Statuses of a hub that has no room; 403 says so in words."""

ERRORS = (httpx2.HTTPError, OSError, RuntimeError, ValueError)
"""What the client raises: RuntimeError around errors of its threads, ValueError for a bad card."""

AGAIN = " Then push again: what the hub has is not sent twice."

WRITE = "A token with write access is made at https://huggingface.co/settings/tokens."


def patiently(
    once: Callable[[], Done],
    repo: str,
    say: Callable[[str], None],
    pauses: Sequence[float],
    wait: Callable[[float], None],
    again: str = "",
) -> Done:
    """Try again while the hub is in trouble; every other error becomes a sentence.

    Args:
        again: said where another time may help.
    """
    for pause in (*pauses, None):
        try:
            return once()
        except ERRORS as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            failure = cause if isinstance(cause, Exception) else error
            if pause is None or not _temporary(failure):
                raise _sentence(failure, repo, again) from None
            pause = max(pause, _asked(failure))
            say(f"{hub.reason(failure)[0]}; trying again in {pause:g} s")
            wait(pause)
    raise AssertionError("the last try returns or raises")


def _temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY
    lost = (httpx2.TransportError, ConnectionError, TimeoutError)
    return isinstance(error, lost) and not isinstance(error, OfflineModeIsEnabled)


def _asked(error: Exception) -> float:
    """Seconds that the hub asks to wait, by its own header or the one that others send."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit and not limit.remaining:
        return limit.reset_in_seconds + 1.0  # what is left of a second is not told
    told = headers.get("Retry-After", "")
    return float(told) if told.isdigit() else 0.0


def _sentence(error: Exception, repo: str, again: str) -> StageFailed:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    words = hub.words(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StageFailed(f"{repo}: this machine's disk is full: {error.strerror}. Make room.")
    if status in FULL or (status == 403 and "storage" in words.lower()):
        fact = f"the hub has no room for it: {words}"
        return StageFailed(f"{repo}: {fact} Nothing of this push is to be seen there.")
    if status == 403:
        return StageFailed(f"{repo}: the hub says: {words} {WRITE}")
    fact, remedy = hub.reason(error)
    if "/xet-" in words:
        remedy = "A hub without Xet takes files with HF_HUB_DISABLE_XET=1."
    return StageFailed(f"{repo}: {fact}. {remedy}{again if _temporary(error) else ''}")


@contextlib.contextmanager
def heard(say: Callable[[str], None]) -> Iterator[None]:
    """What the client logs goes to `say`, without signed addresses and tokens."""

    def hear(record: logging.LogRecord) -> bool:
        say(credentials.hidden(record.getMessage()))
        return False

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(hear)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hear)
