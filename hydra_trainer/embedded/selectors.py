"""Label and field selectors, as the `labelSelector` and `fieldSelector` of a list or watch.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from .refusals import bad_request

Matches = Callable[[Mapping[str, str], Mapping[str, str]], bool]
"""Whether an object with these labels and these fields is selected."""

LABEL = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[\w./-]+)\s*"
    r"(?:(?P<sign>==|=|!=)\s*(?P<value>[\w.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*"
)

FIELDS: dict[str, tuple[str, ...]] = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase"),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "reason",
        "source",
        "type",
    ),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "jobs.batch": ("status.successful",),
}
"""The fields that a kind can be selected by, beside metadata.name and metadata.namespace."""


class Term(NamedTuple):
    """One condition; all have to hold."""

    key: str
    values: tuple[str, ...] | None  # None: any value
    negated: bool

    def holds(self, found: Mapping[str, str]) -> bool:
        if self.key not in found:
            return self.negated
        return (self.values is None or found[self.key] in self.values) is not self.negated


@lru_cache(maxsize=256)
def label_terms(selector: str) -> tuple[Term, ...]:
    """Parse `a=b,c!=d,e in (f, g),h notin (i),j,!k`. Raises ApiError 400."""
    terms, at = [], 0
    while at < len(selector):
        match = LABEL.match(selector, at)
        if not match or selector[match.end() : match.end() + 1] not in ("", ","):
            raise bad_request(f"unable to parse requirement: found {selector[at:]!r}")
        terms.append(_label_term(match))
        at = match.end() + 1
    return tuple(terms)


def _label_term(match: re.Match[str]) -> Term:
    key, sign, set_sign = match["key"], match["sign"], match["set"]
    if sign:
        return Term(key, (match["value"],), sign == "!=")
    if set_sign:
        values = tuple(value.strip() for value in match["values"].split(","))
        return Term(key, values, set_sign == "notin")
    return Term(key, None, bool(match["absent"]))


@lru_cache(maxsize=256)
def field_terms(resource: str, selector: str) -> tuple[Term, ...]:
    """Parse `metadata.name=a,status.phase!=Running`. Raises ApiError 400 for other fields."""
    known = ("metadata.name", "metadata.namespace", *FIELDS.get(resource, ()))
    terms = []
    for part in filter(None, selector.split(",")):
        match = re.fullmatch(r"\s*([^=!]+?)\s*(==|=|!=)\s*(.*?)\s*", part)
        if not match:
            raise bad_request(f"invalid selector: {part!r}; can't understand {part!r}")
        if match[1] not in known:
            raise bad_request(f"field label not supported: {match[1]}")
        terms.append(Term(match[1], (match[3],), match[2] == "!="))
    return tuple(terms)


def selector(resource: str, labels: str, fields: str) -> Matches | None:
    """Return a function that tells what is selected; None when everything is."""
    by_label, by_field = label_terms(labels), field_terms(resource, fields)
    if not by_label and not by_field:
        return None

    def matches(found_labels: Mapping[str, str], found_fields: Mapping[str, str]) -> bool:
        return all(term.holds(found_labels) for term in by_label) and all(
            term.holds(found_fields) for term in by_field
        )

    return matches


def fields_of(resource: str, obj: dict[str, Any]) -> dict[str, str]:
    """Return the fields of an object that it can be selected by; an absent one is empty."""
    meta = obj["metadata"]
    found = {"metadata.name": meta["name"], "metadata.namespace": meta.get("namespace", "")}
    for path in FIELDS.get(resource, ()):
        value: Any = obj
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found[path] = value if isinstance(value, str) else ""
    return found
