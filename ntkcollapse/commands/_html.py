"""Pieces of a self-contained HTML page: everything is inside, nothing is loaded."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 1180px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: .2em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
figure { margin: 1em 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .92em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88em; }
th, td { padding: .22em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
.values td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.values th:last-child { text-align: left; }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: .85em; line-height: 1.35; }
.verdict { background: #eef3f8; padding: .8em 1.2em .8em 2em; margin: 1em 0; } .note { overflow-wrap: anywhere; }
details { margin-top: 1.5em; } summary { font-size: 1.2em; font-weight: 600; cursor: pointer; }
.note { color: #444; font-size: .92em; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole page. The policy in its head forbids a browser to load anything from elsewhere."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A section's heading."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A note."""
    return f'<p class="note">{html.escape(text)}</p>'


def verdict(lines: Sequence[str]) -> str:
    """What is to be read first."""
    if not lines:
        return ""
    return '<ul class="verdict">' + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def folded(title: str, inside: str) -> str:
    """A section that opens on a click; without script."""
    return f"<details><summary>{html.escape(title)}</summary>\n{inside}\n</details>"


def preformatted(text: str) -> str:
    """Text as a terminal shows it."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(drawn: Figure, caption: str) -> str:
    """A matplotlib figure inside the page; closes it."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    plt.close(drawn)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def grid(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def mapping(values: Mapping[str, Any]) -> str:
    """Names and values, nested ones flattened with dots."""
    return grid(["setting", "value"], list(_flat(values))).replace("<table>", '<table class="values">')


def _flat(values: Mapping[str, Any], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
