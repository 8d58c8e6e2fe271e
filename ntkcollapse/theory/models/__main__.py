"""Prints the table of models in Markdown: `python -m ntkcollapse.theory.models > docs/models.md`."""

from ntkcollapse.theory.models import table

if __name__ == "__main__":
    print(table(), end="")
