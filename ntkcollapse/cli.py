"""The command line: it parses, calls one function of `commands`, and turns bad input into one line."""

import argparse
import contextlib
import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

import ntkcollapse
from ntkcollapse import _config
from ntkcollapse._table import printed_as
from ntkcollapse.choices import TABLES
from ntkcollapse.commands import COMMANDS
from ntkcollapse.compiled import compilation_announced, enable_cache


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="ntkcollapse",
        description="The block-structured NTK theory of neural collapse beside trained networks.",
    )
    parser.add_argument("--version", action="version", version=f"ntkcollapse {ntkcollapse.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        # Empty where Python drops docstrings (-OO).
        text = inspect.cleandoc(command.description)
        sub = subparsers.add_parser(
            name, help=text.partition("\n")[0], description=text, formatter_class=_config.HelpFormatter
        )
        _config.add_flags(sub, command.settings)
        said = "; ".join(f"{choice}: {meaning}" for choice, meaning in TABLES.items())
        sub.add_argument(
            "--tables", choices=TABLES, default="text", metavar="FORMAT", help=f"how tables are printed ({said})"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; bad input ends with one line on standard error and status 2, a failed run with 1."""
    for stream in (sys.stdout, sys.stderr):
        # Tables have Greek letters, which not every terminal's encoding holds.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    flags = build_parser().parse_args(arguments)
    name, tables = vars(flags).pop("command"), vars(flags).pop("tables")
    try:
        settings = _config.resolve(COMMANDS[name].settings, flags)
        # Only now, so that `--help` and bad settings are quick.
        import jax

        # Rates that differ by 10⁴ need float64; networks keep their own float32.
        jax.config.update("jax_enable_x64", True)
        enable_cache()
        with compilation_announced(), _warning_in_one_line(name), printed_as(tables):
            COMMANDS[name].function(settings)
        print(end="", flush=True)
    except BrokenPipeError:
        # Whoever read the output has read enough; nor is the rest of it to fail at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, TypeError, FileExistsError, FileNotFoundError) as error:
        print(f"ntkcollapse {name}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, RuntimeError, OSError, MemoryError) as error:
        print(f"ntkcollapse {name}: {error or 'out of memory'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _warning_in_one_line(command: str) -> Iterator[None]:
    """What users are warned of, without the line of our code that Python adds."""
    usual = warnings.formatwarning

    def one_line(message, category, *where):
        own = issubclass(category, UserWarning | RuntimeWarning)
        return f"ntkcollapse {command}: warning: {message}\n" if own else usual(message, category, *where)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
