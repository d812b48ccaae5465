"""A page of HTML that refers to nothing outside itself: its frame, its tables, its style.

Invariant: what is passed as HTML was escaped by whoever made it; names and titles are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def page(name: str, body: str) -> str:
    """Return a whole page.

    Args:
      name: of what it is about, as HTML.
      body: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · rl-cluster</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(anchor: str, title: str, body: str) -> str:
    """Return a titled part of a page; `body` is HTML."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{body}</section>\n'


def pair(first: str, second: str) -> str:
    """Return a cell of two texts, the second small below the first."""
    return f"{escape(first)}<small>{escape(second)}</small>"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, numeric: bool = False) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="numeric"' if numeric else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# The colours of the lines are Okabe and Ito's, which colour-blind readers tell apart.
_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1c1e21; --soft: #656b73;
  --rule: #e3e5e8; --good: #00795a; --bad: #b3400a; --s0: #0072b2; --s1: #d55e00; --s2: #009e73;
  --s3: #cc79a7; --s4: #8a6d00; --s5: #565a60; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e8eaed;
  --soft: #9aa1aa; --rule: #31353b; --good: #3ccf9f; --bad: #ff9354; --s0: #56b4e9;
  --s1: #e69f00; --s2: #2bc79c; --s3: #e3a3c6; --s4: #f0e442; --s5: #b6bcc4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { margin: 0 0 16px; font-size: 28px; letter-spacing: -.01em; }
h2 { margin: 44px 0 12px; font-size: 19px; }
.state { margin-left: 6px; padding: 3px 11px; border: 1px solid currentColor; border-radius: 99px;
  font-size: 13px; font-weight: 500; letter-spacing: 0; vertical-align: middle;
  color: var(--soft); }
.state.completed, .state.running { color: var(--good); }
.state.failed, .failure { color: var(--bad); }
dl { display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 0; }
dt, th, small, .empty, figcaption, summary { color: var(--soft); }
dt { font-size: 12px; } dd { margin: 0; font-weight: 500; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 9px 11px; text-align: left; vertical-align: top; }
th { font-size: 12px; font-weight: 500; white-space: nowrap; }
td { border-top: 1px solid var(--rule); }
.numeric th:not(:first-child), .numeric td:not(:first-child) { text-align: right; }
.numeric td { white-space: nowrap; } .numeric td:first-child { font-weight: 600; }
small { display: block; font-size: 12px; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px 8px; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; }
.charts figcaption { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: center;
  font-size: 13px; font-weight: 600; color: var(--text); }
.key { font-weight: 400; font-size: 12px; color: var(--soft); }
.key svg { display: inline-block; width: 18px; height: 6px; margin-right: 5px;
  vertical-align: middle; }
figure svg { display: block; width: 100%; height: auto; }
figure .empty { display: grid; place-items: center; height: 160px; margin: 0; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
polyline { fill: none; stroke-linejoin: round; }
polyline, .key line { stroke-width: 1.8; }
.dashed { stroke-dasharray: 5 4; }
.series-0 { stroke: var(--s0); } circle.series-0, .band.series-0 { fill: var(--s0); }
.series-1 { stroke: var(--s1); } circle.series-1, .band.series-1 { fill: var(--s1); }
.series-2 { stroke: var(--s2); } circle.series-2, .band.series-2 { fill: var(--s2); }
.series-3 { stroke: var(--s3); } circle.series-3, .band.series-3 { fill: var(--s3); }
.series-4 { stroke: var(--s4); } circle.series-4, .band.series-4 { fill: var(--s4); }
.series-5 { stroke: var(--s5); } circle.series-5, .band.series-5 { fill: var(--s5); }
.band { stroke: none; opacity: .16; }
.video { display: inline-block; margin-top: 14px; font-size: 12px; }
.video img { display: block; height: 240px; image-rendering: pixelated; margin-bottom: 6px; }
details { margin-bottom: 8px; } summary { cursor: pointer; }
pre { overflow-x: auto; padding: 14px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
"""
