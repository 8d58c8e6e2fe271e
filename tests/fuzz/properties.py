"""How cases are made, run and counted: what is refused is refused by this package, in time."""

import signal
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ntkcollapse

PACKAGE = str(Path(ntkcollapse.__file__).parent)
# What a call may end with: documented errors, raised by this package with a message.
DOCUMENTED = (ValueError, TypeError, OSError)
SECONDS = 30
# Cases by what they were of, and how many of them were refused.
made: Counter[str] = Counter()
refused: Counter[str] = Counter()


def sizes(few: int, many: int):
    """A test of few cases in the ordinary run, and of many where slow tests run."""
    return pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])


def run(cases: int, case: Callable[[Any], None]) -> None:
    """Runs `case` with so many draws; the same ones every time in the ordinary run."""

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=cases < 100,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=True,
    )
    @given(st.data())
    def drawn(data):
        case(data)

    drawn()


class Hang(BaseException):
    """A call that does not come back."""


@contextmanager
def _in_time():
    def late(*_):
        raise Hang(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(of: str, call: Callable[[], Any]) -> tuple[bool, Any]:
    """(True, what a call gives), or (False, the message of its refusal); anything else fails the test."""
    made[of] += 1
    with _in_time():
        try:
            return True, call()
        except DOCUMENTED as error:
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            message = str(error)
            if not (where.startswith(PACKAGE) and message):
                # Raised by a library: its message names no argument of ours.
                raise AssertionError(f"raw {type(error).__name__} of {where}: {message}") from error
            refused[of] += 1
            return False, message


DAMAGES = ("bit", "byte", "cut", "more", "zeros", "swap", "twice", "out")


def damaged(data: Any, raw: bytes) -> bytes:
    """A file's bytes with one thing wrong."""
    kind = data.draw(st.sampled_from(DAMAGES), label="damage")
    i = data.draw(st.integers(0, len(raw) - 1), label="at")
    j = min(len(raw), i + data.draw(st.sampled_from([1, 4, 16, 200, 5000]), label="length"))
    if kind == "bit":
        return raw[:i] + bytes([raw[i] ^ (1 << data.draw(st.integers(0, 7), label="bit"))]) + raw[i + 1 :]
    if kind == "byte":
        return raw[:i] + bytes([data.draw(st.integers(0, 255), label="value")]) + raw[i + 1 :]
    if kind == "cut":
        return raw[:i]
    if kind == "more":
        return raw + data.draw(st.binary(min_size=1, max_size=20), label="more")
    if kind == "zeros":
        return raw[:i] + bytes(j - i) + raw[j:]
    if kind == "swap":
        k = min(len(raw), j + (j - i))
        return raw[:i] + raw[j:k] + raw[i:j] + raw[k:]
    return raw[:j] + raw[i:j] + raw[j:] if kind == "twice" else raw[:i] + raw[j:]
