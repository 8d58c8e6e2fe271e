"""Packages whose names are imported when they are first used, so that `import ntkcollapse` and `--help` stay quick."""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that imports a public name, or one of its modules, when somebody first asks for it."""

    # name → (module, attribute), as the package's `if TYPE_CHECKING:` block imports them.
    __sources__: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name in self.__sources__:
            module, attribute = self.__sources__[name]
            # `from package import module` names a module of the package itself.
            value = self._module(attribute) if module == self.__name__ else None
            if value is None:
                holder = importlib.import_module(module)
                # What a package imports may be a module of it that nobody has imported yet.
                value = (
                    getattr(holder, attribute)
                    if hasattr(holder, attribute)
                    else importlib.import_module(f"{module}.{attribute}")
                )
        else:
            value = None if name.startswith("_") else self._module(name)
        if value is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a module binds it in its package: a function of the same name stays what it is.
        source = self.__sources__.get(name)
        if source is not None and isinstance(value, ModuleType) and source[0] != self.__name__:
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__sources__} - {"TYPE_CHECKING"})

    def _module(self, name: str) -> ModuleType | None:
        try:
            return importlib.import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{self.__name__}.{name}":
                raise
            return None


def import_on_use(package: str) -> None:
    """Gives a package the names that its `if TYPE_CHECKING:` block imports, each imported when it is first used.

    The block is what type checkers read; a name is written there and in `__all__`, and nowhere else.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    blocks = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    sources = {(alias.asname or alias.name): (str(node.module), alias.name) for node in imports for alias in node.names}
    module.__dict__["__sources__"] = sources
    module.__class__ = LazyPackage
