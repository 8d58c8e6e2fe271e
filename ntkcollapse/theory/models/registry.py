"""The registry of models: title, assumptions, predictions, source and test of each, and their table."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from ntkcollapse._checks import check_arrays, check_shape
from ntkcollapse.classes import as_classes

# What a model takes one of: a decay rate, a budget.
Number = float | Float[Array, ""]
MODELS: dict[str, "Model"] = {}


class Model:
    """A named model: called, it gives the flow; its exact answers are attributes (`.minimizer`, `.limit`, ...).

    Made by the decorator `model` from the function that builds the flow.
    """

    def __init__(self, build: Callable, about: dict[str, str], answers: dict[str, Callable]):
        self.name: str = build.__name__
        self.build = build
        self.title, self.assumes, self.predicts, self.source, self.test = (
            about[key] for key in ("title", "assumes", "predicts", "source", "test")
        )
        self.answers = answers
        self.__doc__ = build.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function that builds the flow; a list of sizes does for its classes."""
        signature = inspect.signature(self.build)
        given = signature.bind(*args, **kwargs)
        if "classes" in given.arguments:
            given.arguments["classes"] = as_classes(given.arguments["classes"])
        for name, value in given.arguments.items():
            # Losses and modes of the bias have names.
            named = signature.parameters[name].annotation is str or isinstance(signature.parameters[name].default, str)
            if isinstance(value, str) and not named and name != "loss":
                raise ValueError(f"{name}: expected a number, got {value!r}.")
            if name.startswith(("decay", "energy", "radius")):
                check_arrays(**{name: value})
            if signature.parameters[name].annotation == Number:
                check_shape(name, value, (), "one number")
        return self.build(*given.args, **given.kwargs)

    def __getattr__(self, name: str) -> Callable:
        answers = self.__dict__.get("answers", {})
        if name in answers:
            return answers[name]
        raise AttributeError(
            f"models.{self.__dict__.get('name')}: has no {name!r}, but {', '.join(answers) or 'none'}."
        )

    def __dir__(self):
        return [*super().__dir__(), *self.answers]

    def __repr__(self) -> str:
        return f"<model {self.name}: {self.title}; answers: {', '.join(self.answers) or 'none'}>"


def model(
    *, title: str, assumes: str, predicts: str, source: str, test: str, **answers: Callable
) -> Callable[[Callable], Model]:
    """Registers a function as a model, with what the table says of it and its exact answers."""
    about = dict(title=title, assumes=assumes, predicts=predicts, source=source, test=test)

    def register(build: Callable) -> Model:
        MODELS[build.__name__] = Model(build, about, answers)
        return MODELS[build.__name__]

    return register


def table() -> str:
    """The table of all models in Markdown: what each assumes, predicts, where it is from, and which test holds it."""
    rows = [
        "# Models",
        "",
        "Every model is an instance of one state equation,",
        "",
        "$$\\dot H = \\Pi_H[-W^\\top G K - \\lambda_H H] + \\text{noise},\\quad"
        " \\dot W = \\Pi_W[-\\eta_W G H^\\top - \\lambda_W W],\\quad"
        " \\dot b = -\\eta_b G 1 - \\lambda_b b,\\quad G = \\partial\\,\\text{loss}/\\partial\\,\\text{logits},$$",
        "",
        "or a measurement beside it. `ntkcollapse/theory/models/catalogue.py` says in a few lines each what",
        "distinguishes them. This table is written by `python -m ntkcollapse.theory.models`.",
        "",
        "| model | assumes | predicts | source | exact answers | test |",
        "|---|---|---|---|---|---|",
    ]
    for entry in MODELS.values():
        answers = ", ".join(f"`.{name}`" for name in entry.answers)
        cells = [f"`{entry.name}`: {entry.title}", entry.assumes, entry.predicts, entry.source, answers]
        rows.append("| " + " | ".join([*cells, f"`{entry.test}`"]) + " |")
    return "\n".join(rows) + "\n"
