"""The metrics of a job: what regular expressions find in its logs."""

import contextlib
import re
from typing import Any

from .logs import Event

Object = dict[str, Any]


def final(definitions: list[Object], events: list[Event]) -> list[Object]:
    """Return the last value of each metric, as FinalMetricDataList has it.

    Args:
        events: of all streams, the oldest first.
    """
    found: dict[str, Object] = {}
    for definition in definitions:
        with contextlib.suppress(re.error):
            pattern = re.compile(definition["Regex"])
            for event in events:
                for match in pattern.finditer(event.message):
                    with contextlib.suppress(ValueError, IndexError):
                        value = float(match.group(1))
                        found[definition["Name"]] = {
                            "MetricName": definition["Name"],
                            "Value": value,
                            "Timestamp": event.timestamp / 1000,
                        }
    return list(found.values())
