"""A page of figures and tables in one HTML file: no network, light and dark, readable on a phone."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  background: Canvas; color: CanvasText; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, small { opacity: .85; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.caution { border-left: 4px solid #D55E00; padding: .1rem 1rem; background: var(--soft); }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; font-size: .8rem; }
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def cautions(lines: Sequence[str]) -> str:
    """A marked list of what a reader must keep in mind."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="caution"><ul>{items}</ul></div>'


def figure(path: Path, alternative: str, caption: str) -> str:
    """A PNG as a data URI.

    Args:
        path: the PNG.
        alternative: what it shows, in words, for those who do not see it.
        caption: below it.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="wide"><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text cells that scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption><small>{escape(caption)}</small></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def preformatted(text: str, summary: str) -> str:
    """Text as it is, folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole page.

    Args:
        title: in the head and on top.
        sections: heading and blocks from the functions above; an empty heading gives none.
    """
    body = "\n".join(
        "<section>" + (f"<h2>{escape(heading)}</h2>" if heading else "") + "\n".join(blocks) + "</section>"
        for heading, blocks in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )
