"""report.html: a sweep as one file that opens without a network.

The page's style and script lie in page/, and are put into the file as they are; of the sweep, what
is text is escaped, and what is drawn is JSON that the script reads. Nothing but that script runs,
and nothing is fetched: the page's own policy forbids it.
"""

import base64
import functools
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hydra_trainer import __version__

from .figures import figures, last_seen
from .front import leaders
from .rows import Objective, Row, State, Sweep
from .tally import ORDER, tally
from .words import COLOUR, again, command, duration, number, short, value, varied

SCRIPTS = ("base.js", "charts.js", "jobs.js")
EXAMPLES = 12  # different messages that are shown of one reason
MESSAGE = 6000  # characters of one message
NUMBERS = 30  # jobs that are named beside a message


def write(sweep: Sweep, path: Path) -> None:
    """Write the report of a sweep: the same bytes for the same sweep."""
    # Half of a character, from an argument that was not text, is written as in Python and JSON.
    path.write_bytes(page(sweep).encode(errors="backslashreplace"))


def page(sweep: Sweep) -> str:
    """Return the report of a sweep as HTML."""
    rows = sweep.shown()
    script, style = _script(), _asset("style.css")
    charts, failures = '<div id="charts"></div>', list(_failures(rows))
    middle = [charts, *failures] if leaders(sweep) else [*failures, charts]
    body = [*_head(sweep, rows), *_best(sweep), *middle, '<div id="jobs"></div>', *_foot()]
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escaped(_title(rows))}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            '<body><div class="page">',
            *body,
            "</div>",
            f'<script type="application/json" id="data">{_json(figures(sweep))}</script>',
            f'<script type="module">{script}</script>',
            "</body>",
            "</html>\n",
        )
    )


@functools.cache
def _script() -> str:
    return "\n" + "\n".join(map(_asset, SCRIPTS))


def _asset(name: str) -> str:
    return Path(__file__).with_name("page").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _json(data: object) -> str:
    """Return JSON that cannot end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _escaped(text: object) -> str:
    return html.escape(str(text))


# ------------------------------------------------------------------------------------- the head


def _title(rows: Sequence[Row]) -> str:
    names = list(short(varied(rows)).values())
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"Sweep of {some}" if some else "Sweep"


def _head(sweep: Sweep, rows: Sequence[Row]) -> Iterator[str]:
    found = tally(rows)
    yield f"<h1>{_escaped(_title(rows))}</h1>"
    yield f'<p class="soft">{" · ".join(_facts(sweep, rows))}</p>'
    yield _command(again(sweep), f"in {sweep.cwd}" if sweep.cwd else "")
    yield '<section class="card"><svg class="bar" role="img" aria-label="jobs by state">'
    before = 0.0
    for state in (State.SUCCEEDED, *(one for one in ORDER if one is not State.SUCCEEDED)):
        share = 100 * found.states[state] / max(1, found.total)
        if share:
            box = f'x="{before:.3f}%" width="{share:.3f}%" height="100%"'
            yield f'<rect class="is-{state.lower()}" {box}></rect>'
        before += share
    yield '</svg><ul class="counts">'
    for state in (State.SUCCEEDED, *(one for one in ORDER if one is not State.SUCCEEDED)):
        if count := found.states[state]:
            yield f'<li class="is-{state.lower()}"><b>{count:,}</b> {state.lower()}</li>'
    yield "</ul></section>"


def _facts(sweep: Sweep, rows: Sequence[Row]) -> Iterator[str]:
    places = Counter(row.launcher for row in rows)
    counted = [f"{count:,} on {place}" for place, count in places.items()]
    on = f", {' and '.join(counted)}" if len(places) > 1 else "".join(f" on {p}" for p in places)
    yield _escaped(f"{len(rows):,} {'job' if len(rows) == 1 else 'jobs'}{on}")
    if sweep.began is not None:
        over = max(last_seen(rows), sweep.began)
        yield f"{_time(sweep.began)}, {duration(over - sweep.began)} long"
    if sweep.sweeper:
        yield f"sweeper {_escaped(sweep.sweeper)}"
    for one in sweep.objectives:
        yield f"{_escaped(one.metric)}: {_direction(one)} is better"


def _direction(objective: Objective) -> str:
    return "more" if objective.mode == "max" else "less"


def _time(at: float) -> str:
    """Return a time in UTC; the page's script tells it by the reader's clock."""
    found = datetime.fromtimestamp(at, UTC)
    return f'<time datetime="{found:%Y-%m-%dT%H:%M:%SZ}">{found:%Y-%m-%d %H:%M} UTC</time>'


def _command(text: str, note: str = "") -> str:
    told = f'<p class="note">{_escaped(note)}</p>' if note else ""
    copied = f'<button class="button" data-copy="{_escaped(text)}">copy</button>'
    return f'<div class="command"><pre>{_escaped(text)}</pre>{copied}</div>{told}'


# ------------------------------------------------------------------------------------- the best


def _best(sweep: Sweep) -> Iterator[str]:
    several = len(sweep.objectives) > 1
    for row in leaders(sweep):
        names = short(varied(sweep.shown()))
        yield '<section class="card best"><header>'
        yield f"<h2>{'Best by one objective' if several else 'Best'}</h2>"
        link = f'<button class="jump" data-show="{row.number}">job {row.number}</button>'
        yield f'<span class="note">{link}</span></header><div class="figures">'
        for one, found in zip(sweep.objectives, row.values, strict=True):
            yield f'<div><div class="figure">{number(found)}</div>'
            yield f'<div class="soft">{_escaped(one.metric)}</div></div>'
        yield '</div><div class="chips">'
        for key in names:
            if key in row.params:
                yield f'<code class="chip">{_escaped(f"{key}={value(row.params[key])}")}</code>'
        yield f"</div>{_command(command(sweep, row))}</section>"


# --------------------------------------------------------------------------------- the failures


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the reasons, the most frequent first, each with its different messages."""
    failed = [row for row in rows if row.state is State.FAILED]
    if not failed:
        return
    by_reason: dict[str, list[Row]] = {}
    for row in failed:
        by_reason.setdefault(row.reason or "no reason is known", []).append(row)
    yield '<section class="card failures"><header><h2>Failures</h2>'
    yield f'<span class="note">{len(failed):,} of {len(rows):,} jobs, by reason</span></header>'
    for name, some in sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        is_open = " open" if len(by_reason) <= 3 else ""
        yield f"<details{is_open}><summary><b>{len(some):,}</b> {_escaped(name)}</summary>"
        yield from _cases(some)
        yield "</details>"
    yield "</section>"


def _cases(rows: Sequence[Row]) -> Iterator[str]:
    """Yield each message once: two that differ in numbers only are one."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(re.sub(r"\d+", "#", row.message), []).append(row)
    ordered = sorted(cases.values(), key=lambda some: (-len(some), some[0].number))
    for some in ordered[:EXAMPLES]:
        message = COLOUR.sub("", some[0].message).strip()[:MESSAGE] or "There was no message."
        yield f'<div class="case"><pre>{_escaped(message)}</pre><p class="note">{_jobs(some)}</p>'
        if some[0].handle:
            why = _escaped(f"hydra-trainer why {some[0].handle}")
            yield f'<p class="note"><code>{why}</code></p>'
        yield "</div>"
    if rest := ordered[EXAMPLES:]:
        count = sum(map(len, rest))
        yield f'<p class="note">and {count:,} more with other messages: they are in the table.</p>'


def _jobs(rows: Sequence[Row]) -> str:
    links = (
        f'<button class="jump" data-show="{row.number}">{row.number}</button>'
        for row in rows[:NUMBERS]
    )
    more = f" and {len(rows) - NUMBERS:,} more" if len(rows) > NUMBERS else ""
    head = f"{len(rows):,} jobs:" if len(rows) > 1 else "job"
    return f"{head} {', '.join(links)}{more}"


def _foot() -> Iterator[str]:
    yield "<noscript><p>The charts and the table of all jobs need JavaScript.</p></noscript>"
    yield f"<footer>hydra-trainer {_escaped(__version__)}</footer>"
