"""Other numbers in the table of what is chosen by platform."""

from ntkcollapse._platforms import CONSTANTS, Choice


def as_if(monkeypatch, **numbers: float) -> None:
    """Every platform has these numbers, for one test."""
    for name, value in numbers.items():
        choice = Choice(value, "unknown")
        monkeypatch.setitem(CONSTANTS, name, CONSTANTS[name]._replace(cpu=choice, cuda=choice, tpu=choice))
