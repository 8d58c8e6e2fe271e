"""The command line: it parses, calls one function of `commands`, and turns bad input into one line."""

import argparse
import sys
from collections.abc import Sequence

import jax

from ntkcollapse import _config, commands


def build_parser(names: Sequence[str] = tuple(commands.COMMANDS)) -> argparse.ArgumentParser:
    """The parser with the flags of the sub-commands named."""
    parser = argparse.ArgumentParser(
        prog="ntkcollapse",
        description="The block-structured NTK theory of neural collapse beside trained networks.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        settings, function = commands.load(name)
        said = (function.__doc__ or "").strip()
        sub = subparsers.add_parser(name, help=said.splitlines()[0], description=said)
        _config.add_flags(sub, settings)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; bad input ends with one line on standard error and status 2, a failed run with 1."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Only the command that is asked for is imported; `ntkcollapse --help` lists them all.
    named = tuple(name for name in arguments[:1] if name in commands.COMMANDS)
    flags = build_parser(named or tuple(commands.COMMANDS)).parse_args(arguments)
    # Rates that differ by 10⁴ need float64; networks keep their own float32.
    jax.config.update("jax_enable_x64", True)
    settings, function = commands.load(flags.command)
    try:
        function(_config.resolve(settings, flags))
    except (ValueError, TypeError, FileExistsError, FileNotFoundError) as error:
        print(f"ntkcollapse {flags.command}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, RuntimeError, OSError) as error:
        print(f"ntkcollapse {flags.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
