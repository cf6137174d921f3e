"""The objectives of a run: the best value of a logged metric, and when it was logged."""

import math
from collections.abc import Mapping
from typing import Any


class Goal:
    """One objective. `best` is {"value", "step"}, or None while nothing was logged."""

    def __init__(self, metric: str, mode: str = "min", value: str = "best") -> None:
        self.metric, self.mode, self.value = metric, mode, value
        self.best: dict[str, Any] | None = None

    def take(self, logged: Mapping[str, float], step: int) -> None:
        """Take in what was logged; what is not a number is never the best."""
        value = logged.get(self.metric)
        if value is not None and self._better(value):
            self.best = {"value": value, "step": step}

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value > self.best["value"] if self.mode == "max" else value < self.best["value"]


def goals(objective: Mapping[str, Any]) -> list[Goal]:
    """Return the objectives of a configuration's section: the main one, then the others."""
    sections = [objective, *objective.get("others", [])]
    keys = ("metric", "mode", "value")
    return [Goal(**{key: one[key] for key in keys if key in one}) for one in sections]
