"""The count of cases, at the end of a run."""

from tests.fuzz.properties import made, refused


def pytest_terminal_summary(terminalreporter):
    if made:
        terminalreporter.section("fuzzing")
        for name, count in sorted(made.items()):
            terminalreporter.write_line(f"{name}: {count} cases, {refused[name]} refused")
        terminalreporter.write_line(f"in all: {made.total()} cases, {refused.total()} refused")
