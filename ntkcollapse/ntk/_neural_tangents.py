"""neural-tangents 0.6.5 on the JAX of today.

It is the last release, and imports names of JAX that have moved since, and TensorFlow for a prototype that is not
used here. While it is imported for the first time it is shown the modules of JAX it uses with the old names in them;
afterwards JAX is as it was. This is the one file that reaches into JAX's private modules.
"""

import importlib
import importlib.metadata
import sys
import types
import warnings
from contextlib import contextmanager
from functools import cache

import jax
import jax.core
import jax.extend.core
import jax.interpreters
import jax.interpreters.ad as ad


@cache
def neural_tangents() -> types.ModuleType:
    """The package, imported.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.metadata.version("neural-tangents")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            "neural-tangents: expected the package for this engine and for infinite-width kernels, it is not "
            "installed; pip install --no-deps neural-tangents==0.6.5 and pip install frozendict (no TensorFlow needed)."
        ) from error
    with warnings.catch_warnings(), _names_of_old():
        warnings.simplefilter("ignore")
        return importlib.import_module("neural_tangents")


class _Forward(types.ModuleType):
    """A module with more names than the one behind it."""

    def __init__(self, behind: types.ModuleType, **names):
        super().__init__(behind.__name__)
        self.__dict__["_behind"] = behind
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(self.__dict__["_behind"], name)


@contextmanager
def _names_of_old():
    shown = {
        "jax.core": _core(),
        "jax.util": _Forward(importlib.import_module("jax._src.util")),
        "jax.interpreters.ad": _Forward(ad, zeros_like_p=importlib.import_module("jax._src.ad_util").zeros_like_p),
        # Its own prototype on TensorFlow: an empty module in its place.
        "neural_tangents.experimental": types.ModuleType("neural_tangents.experimental"),
    }
    kept = {name: sys.modules.get(name) for name in shown}
    sys.modules.update(shown)
    setattr(jax, "core", shown["jax.core"])  # noqa: B010
    setattr(jax.interpreters, "ad", shown["jax.interpreters.ad"])  # noqa: B010
    try:
        yield
    finally:
        setattr(jax, "core", kept["jax.core"])  # noqa: B010
        setattr(jax.interpreters, "ad", kept["jax.interpreters.ad"])  # noqa: B010
        for name, module in kept.items():
            if module is not None:
                sys.modules[name] = module
            elif name.startswith("jax."):
                del sys.modules[name]


def _core() -> types.ModuleType:
    private = importlib.import_module("jax._src.core")
    moved = ("Jaxpr", "JaxprEqn", "ClosedJaxpr", "Literal", "Primitive", "Var")
    names = {name: getattr(jax.extend.core, name) for name in moved}
    for name in ("ShapedArray", "AbstractValue", "Value", "get_aval", "lattice_join"):
        if not hasattr(jax.core, name) and hasattr(private, name):
            names[name] = getattr(private, name)
    # Only ever compared with: no array is one.
    names["DShapedArray"] = type("DShapedArray", (), {})
    return _Forward(jax.core, **names)
