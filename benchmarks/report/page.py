"""One self-contained page: no script, no file beside it; phone and desk, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1d2126; --soft: #626a73;
  --line: #d9dcdf; --panel: #f1f2f3; --accent: #0072b2; --warn: #8a4b00; --warn-ground: #fff3df; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181b; --ink: #e4e7ea; --soft: #9aa3ac;
  --line: #353b41; --panel: #1f2428; --accent: #56b4e9; --warn: #ffd699; --warn-ground: #3a2a10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 48rem; } .soft { color: var(--soft); font-size: .9rem; }
.notice { background: var(--warn-ground); color: var(--warn); padding: .6rem .8rem;
  border-radius: .4rem; }
@media (max-width: 30rem) { table { font-size: .85rem; } }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; }
.figure { background: var(--panel); border-radius: .4rem; padding: .6rem .8rem; }
.figure b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem 0 .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
tr.strong td { font-weight: 700; }
dl { display: grid; grid-template-columns: minmax(7rem, 14rem) 1fr; gap: .2rem .8rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }
.plots figure { margin: 0; } .plots svg { width: 100%; height: auto; display: block; }
.plots svg text { font-family: system-ui, sans-serif !important; }
figcaption { color: var(--soft); font-size: .9rem; }
.bar { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; }
.bar i { display: block; min-width: 1px; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin-top: .4rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .35rem; vertical-align: -.1rem; }
"""


def render_page(title: str, sections: Sequence[str]) -> str:
    """The whole document; sections are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def render_notice(text: str) -> str:
    """Something to know before the numbers are believed."""
    return f'<p class="notice">{escape(text)}</p>'


def render_figures(figures: Sequence[tuple[str, str]]) -> str:
    """Large numbers: (value with its unit, what it is)."""
    cells = "".join(
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in figures
    )
    return f'<div class="figures">{cells}</div>'


def render_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, strong: Sequence[str] = ()
) -> str:
    """A table; rows whose first cell is in `strong` stand out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for row in rows:
        mark = ' class="strong"' if str(row[0]) in strong else ""
        body += f"<tr{mark}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def render_pairs(pairs: Mapping[str, object]) -> str:
    """Names and values; None becomes a dash."""
    cells = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_as_text(value))}</dd>"
        for name, value in pairs.items()
    )
    return f"<dl>{cells}</dl>"


def render_plots(plots: Sequence[tuple[str, str]]) -> str:
    """(SVG element, caption)"""
    cells = "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for svg, caption in plots
    )
    return f'<div class="plots">{cells}</div>'


def render_bar(parts: Mapping[str, float], colours: Mapping[str, str], unit: str) -> str:
    """One bar that is divided in proportion, with its key; colours by the parts' names."""
    whole = sum(parts.values()) or 1.0
    bar = key = ""
    for name, value in parts.items():
        colour = colours[name]
        bar += f'<i style="width:{value / whole * 100:.2f}%;background:{colour}"></i>'
        key += (
            f'<span><i style="background:{colour}"></i>{escape(name)} {value:.2f} {unit} '
            f"({value / whole * 100:.0f} %)</span>"
        )
    return f'<div class="bar">{bar}</div><div class="key">{key}</div>'


def _as_text(value: object) -> str:
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_as_text(each)}" for name, each in value.items())
    return str(value)
