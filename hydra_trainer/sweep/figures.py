"""What the page of a sweep draws, as plain data. Numbers that are none are null in it."""

import math
from collections.abc import Sequence
from typing import Any

from .front import front, scored
from .importance import importances
from .rows import Objective, Row, State, Sweep
from .scales import Scale, is_number, scale
from .words import command, reason, short, spent, value, varied

TICKS = 8  # different values of a parameter up to which each one is named on its axis
DIGITS = 6  # of a number: more cannot be seen
WHY = 600  # characters of a reason beside its job; all of it stands among the failures


def figures(sweep: Sweep) -> dict[str, Any]:
    """Return the objectives, parameters and jobs of a sweep, each with what its axis needs."""
    rows = sweep.shown()
    good = scored(sweep)
    keys = varied(rows)
    params = [_param(key, rows) for key in keys]
    ahead = {row.number for row in front(good, sweep.objectives)} if good else set()
    zero = min((at for row in rows if (at := _begun(row)) is not None), default=0.0)
    last = last_seen(rows)
    curves = {row.number: curve for row in rows if (curve := _curve(row))}
    return {
        "objectives": [
            {"metric": one.metric, "mode": one.mode, **_goal(one, [row.values[i] for row in good])}
            for i, one in enumerate(sweep.objectives)
        ],
        "params": [
            {"name": key, "short": name, **param}
            for (key, name), param in zip(short(keys).items(), params, strict=True)
        ],
        "jobs": [
            {
                **_job(sweep, row),
                **_words(row, given := _given(row, keys, params)),
                **_times(row, zero, last),
                "params": given,
                "front": row.number in ahead,
            }
            for row in rows
        ],
        "curves": curves,
        **_curve_axes(sweep, list(curves.values())),
        "importance": [one._asdict() for one in importances(sweep)],
    }


def last_seen(rows: Sequence[Row]) -> float:
    """Return the time of the newest event that is known of any row: a report has no clock."""
    return max((at for row in rows for at in (row.sent, row.started, row.ended) if at), default=0.0)


def _goal(objective: Objective, values: Sequence[float]) -> dict[str, Any]:
    worst = "low" if objective.mode == "max" else "high"
    return _axis(_padded(scale(values, worst))) if values else _axis(Scale(False, 0.0, 1.0))


def _padded(found: Scale) -> Scale:
    """Return an axis with a little room at both ends: no dot is cut in half."""
    if found.log:
        room = (found.high / found.low) ** 0.03
        return Scale(True, found.low / room, found.high * room)
    room = (found.high - found.low) * 0.03
    return Scale(False, found.low - room, found.high + room)


def _axis(found: Scale) -> dict[str, Any]:
    return {"log": found.log, "low": _brief(found.low), "high": _brief(found.high)}


def _param(key: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the axis of a parameter: of numbers where all of its values are, or of choices."""
    given = [row.params[key] for row in rows if key in row.params]
    if all(map(is_number, given)):
        different = sorted(set(given))
        ticks = different if len(different) <= TICKS else None
        return {"options": None, "ticks": ticks, **_axis(_padded(scale(given)))}
    options = sorted({value(one) for one in given})
    return {"options": options, "ticks": None, "log": False, "low": 0, "high": 1}


def _given(row: Row, keys: Sequence[str], params: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the parameters of a job, as their axes want them."""
    found = []
    for key, param in zip(keys, params, strict=True):
        given = row.params.get(key)
        found.append(value(given) if param["options"] and key in row.params else given)
    return found


def _job(sweep: Sweep, row: Row) -> dict[str, Any]:
    comparable = row.state is State.SUCCEEDED and len(row.values) == len(sweep.objectives)
    return {
        "number": row.number,
        "state": row.state.lower(),
        "values": [_brief(one) for one in row.values] if comparable else [],
        "last": _brief(row.curve[-1][1]) if row.curve else None,
        "launcher": row.launcher,
        "name": row.name,
        "handle": row.handle or "",
        "output": row.output,
        "command": command(sweep, row),
        "metrics": {name: _brief(one) for name, one in sorted(row.metrics.items())},
    }


def _words(row: Row, given: Sequence[Any]) -> dict[str, str]:
    """Return why a job ended badly, and the words that one may look for it by."""
    why = reason(row)[:WHY] if row.reason or row.message else ""
    told = [row.name, row.state.lower(), row.launcher, *row.overrides, *map(str, given), why]
    return {"reason": why, "text": " ".join(told).lower()}


def _times(row: Row, zero: float, last: float) -> dict[str, float | None]:
    """Return when a job began and ended, in seconds since the first one began, and how long it ran.

    A job that runs is drawn up to `last`.
    """
    begun = _begun(row)
    over = None if begun is None else max(begun, row.ended or last)
    return {
        "seconds": _rounded(spent(row, last)),
        "begun": None if begun is None else _rounded(begun - zero),
        "over": None if over is None else _rounded(over - zero),
    }


def _begun(row: Row) -> float | None:
    return None if row.state in (State.PLANNED, State.PENDING) else row.started or row.sent


def _curve(row: Row) -> list[list[Any]] | None:
    points = [(step, _brief(one)) for step, one in row.curve if is_number(one)]
    return [list(column) for column in zip(*points, strict=True)] if len(points) > 1 else None


def _curve_axes(sweep: Sweep, curves: Sequence[list[list[Any]]]) -> dict[str, Any]:
    if not curves:
        return {"steps": _axis(Scale(False, 0.0, 1.0)), "heights": _axis(Scale(False, 0.0, 1.0))}
    steps = [step for curve in curves for step in (curve[0][0], curve[0][-1])]
    heights = [one for curve in curves for one in curve[1]]
    return {
        "steps": _axis(Scale(False, min(*steps, 0), max(steps))),
        "heights": _goal(sweep.objectives[0], heights),
    }


def _brief(given: float) -> float | None:
    """Return a number with as many digits as can be seen; of NaN and infinity nothing."""
    if not is_number(given):
        return None
    return given if isinstance(given, int) else float(f"{given:.{DIGITS}g}")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(seconds, 1)
