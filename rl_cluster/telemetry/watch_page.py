"""The watch page itself: one constant file, which asks for what it shows once a second.

Invariant: nothing that comes from outside is in it. Its script places texts as text, never as HTML,
and its policy lets a browser run and load nothing but that script, its style and what the same
server sends.
"""

from __future__ import annotations

import base64
import hashlib
import json

from rl_cluster.telemetry.watch_view import POLICY_HEADS

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1c1e21; --soft: #656b73;
  --rule: #e3e5e8; --good: #00795a; --warn: #8a5a00; --bad: #b3400a; --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e8eaed;
  --soft: #9aa1aa; --rule: #31353b; --good: #3ccf9f; --warn: #f2b84b; --bad: #ff9354;
  --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { margin: 0 0 12px; font-size: 26px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h1 small { display: inline; font-size: 17px; margin-left: 4px; }
h2 { margin: 30px 0 10px; font-size: 17px; }
.state { margin-left: 8px; padding: 3px 11px; border: 1px solid currentColor; color: var(--soft);
  border-radius: 99px; font-size: 13px; font-weight: 500; letter-spacing: 0;
  vertical-align: middle; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.notice { margin: 0 0 8px; padding: 9px 14px; background: var(--card);
  border: 1px solid var(--rule); border-left: 4px solid var(--soft); border-radius: 6px;
  overflow-wrap: anywhere; }
.notice.warn, .notice.bad { border-left-color: currentColor; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr));
  gap: 12px 18px; margin: 0; font-variant-numeric: tabular-nums; }
.panel, .rover { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 14px 16px; }
dt, small, .soft, th { color: var(--soft); font-size: 12px; font-weight: 400; }
dd { margin: 0; } dd b { font-size: 17px; font-weight: 600; line-height: 1.3; }
small { display: block; line-height: 1.35; }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 0 22px; }
.halves section { display: flex; flex-direction: column; } .halves .panel { flex: 1; }
.rovers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr));
  gap: 14px; }
.rover h3 { display: flex; justify-content: space-between; gap: 12px; margin: 0 0 10px;
  font-size: 15px; overflow-wrap: anywhere; }
.rover h3 span { font-weight: 400; font-size: 13px; white-space: nowrap; }
.rover h3 span::before { content: "● "; font-size: 11px; }
.rover .both { display: grid; grid-template-columns: 168px 1fr; gap: 16px; }
.rover .facts { grid-template-columns: 1fr 1fr; gap: 6px 12px; align-content: start; }
.rover dd b { font-size: 15px; } .rover img { display: block; width: 100%; filter: url(#colours); }
.view { aspect-ratio: 1; margin-bottom: 5px; border-radius: 5px; overflow: hidden;
  background: #21262e; }
.key i { display: inline-block; width: 10px; height: 10px; margin: 0 5px 0 12px;
  border-radius: 2px; }
.obstacle { background: #f79e33; } .ground { background: #2e7da6; }
.unknown { background: #21262e; border: 1px solid var(--rule); }
#returns { display: block; width: 100%; height: 44px; margin-top: 12px; }
#returns rect { fill: var(--bar); }
.scroll { overflow-x: auto; padding: 4px 0; }
table { width: 100%; border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: left; white-space: nowrap; }
td { border-top: 1px solid var(--rule); } td:first-child { font-weight: 600; }
.lost main > :not(header) { opacity: .45; }
.aside { position: absolute; }
[hidden] { display: none; }
"""

_SCRIPT = """
"use strict";
const HEADS = __HEADS__;
const at = (id) => document.getElementById(id);
const make = (tag, kind = "", ...parts) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  node.append(...parts);
  return node;
};
const say = (node, text, kind) => {
  if (node.textContent !== text) node.textContent = text;
  if (kind !== undefined && node.className !== kind) node.className = kind;
};
// What is there is kept and changed, so that text can be marked and pictures do not flicker.
const place = (parent, items, create, fill) => {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(create());
  items.forEach((item, i) => fill(parent.children[i], item));
};
const placeFacts = (list, facts) => place(list, facts,
  () => make("div", "", make("dt"), make("dd", "", make("b"), make("small"))),
  (node, fact) => {
    say(node.firstChild, fact.label);
    say(node.querySelector("b"), fact.value, fact.kind);
    say(node.querySelector("small"), fact.note);
  });
const createRover = () => {
  const image = make("img");
  image.alt = "what the rover saw last, from above";
  return make("article", "rover",
    make("h3", "", make("div"), make("span")),
    make("div", "both",
      make("div", "", make("div", "view", image), make("small"), make("small")),
      make("dl", "facts")));
};
const fillRover = (node, rover) => {
  const image = node.querySelector("img");
  say(node.querySelector("h3 div"), rover.name);
  say(node.querySelector("h3 span"), rover.seen, rover.kind || "soft");
  const notes = node.querySelectorAll(".both > div > small");
  say(notes[0], rover.view_note);
  say(notes[1], rover.sent);
  image.hidden = rover.view === null;
  if (rover.view !== null && image.getAttribute("src") !== rover.view) image.src = rover.view;
  placeFacts(node.querySelector("dl"), rover.facts);
};
const placeReturns = (returns) => {
  const drawing = at("returns"), low = Math.min(0, ...returns), high = Math.max(0, ...returns);
  const scale = 40 / (high - low || 1);
  drawing.toggleAttribute("hidden", returns.length === 0);
  at("returns-note").hidden = returns.length === 0;
  place(drawing, returns,
    () => document.createElementNS("http://www.w3.org/2000/svg", "rect"),
    (bar, value) => {
      const index = [...drawing.children].indexOf(bar);
      bar.setAttribute("x", 10 * index + 1);
      bar.setAttribute("width", 8);
      bar.setAttribute("y", 42 - scale * (Math.max(0, value) - low));
      bar.setAttribute("height", Math.max(1, scale * Math.abs(value)));
    });
};
const placeRow = (row, cells, tag) => place(row, cells, () => make(tag), say);
const show = (view) => {
  document.title = `${view.task} · ${view.run}`;
  say(at("task"), view.task);
  say(at("run"), view.run);
  say(at("state"), view.state.text, `state ${view.state.kind}`);
  place(at("notices"), view.notices, () => make("p"),
    (node, notice) => say(node, notice.text, `notice ${notice.kind}`));
  placeFacts(at("stream"), view.stream);
  placeFacts(at("learning"), view.learning);
  placeReturns(view.returns);
  at("fleet").hidden = view.rovers.length === 0;
  place(at("rovers"), view.rovers, createRover, fillRover);
  at("sent").hidden = view.policies.length === 0;
  place(at("policies"), view.policies, () => make("tr"),
    (row, cells) => placeRow(row, cells, "td"));
};
const refresh = async () => {
  try {
    const answer = await fetch("status.json", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
    at("lost").hidden = true;
  } catch (error) {
    at("lost").hidden = false;
  }
  document.body.className = at("lost").hidden ? "" : "lost";
  setTimeout(refresh, 1000);
};
placeRow(at("heads"), HEADS, "th");
refresh();
""".replace("__HEADS__", json.dumps(POLICY_HEADS))

_BODY = """
<svg width="0" height="0" class="aside" aria-hidden="true">
<filter id="colours" color-interpolation-filters="sRGB"><feColorMatrix values="
 .84 .05 0 0 .13  .47 .34 0 0 .15  .02 .47 0 0 .18  0 0 0 1 0"/></filter></svg>
<main>
<header>
<h1><span id="task">rl-cluster</span> <small id="run"></small><span id="state"
 class="state"></span></h1>
<p id="lost" class="notice bad" hidden>This page gets no answer any more, so it shows what was:
start <code>rl-cluster watch</code> again.</p>
<noscript><p class="notice">This page needs its script.</p></noscript>
</header>
<div id="notices" aria-live="polite"></div>
<section id="fleet" hidden><h2>Rovers</h2>
<div id="rovers" class="rovers"></div>
<p class="key soft">Views as the rovers sent them:<i class="obstacle"></i>obstacles
<i class="ground"></i>ground seen<i class="unknown"></i>neither. Returns are means of each rover's
newest 20 episodes.</p></section>
<div class="halves">
<section><h2>Stream</h2><div class="panel"><dl id="stream" class="facts"></dl></div></section>
<section><h2>Learning</h2><div class="panel"><dl id="learning" class="facts"></dl>
<svg id="returns" viewBox="0 0 200 44" preserveAspectRatio="none" role="img"
 aria-label="returns of the newest episodes"></svg>
<small id="returns-note">each bar: the return of an episode, the newest on the right</small>
</div></section>
</div>
<section id="sent" hidden><h2>Policies sent</h2><div class="panel scroll"><table>
<thead><tr id="heads"></tr></thead><tbody id="policies"></tbody></table></div></section>
</main>
"""

PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>rl-cluster</title><style>{_STYLE}</style></head>\n"
    f"<body>{_BODY}<script>{_SCRIPT}</script></body></html>\n"
)


def _source(text: str) -> str:
    """How a policy names an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
