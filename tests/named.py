"""What a dotted name names."""

import importlib


def find(name: str):
    """The object of a dotted name; where a package has a function and a module of one name it is the function."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[i:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)
