"""What was looked at before a job is sent, and what it means for the job."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at. `level` is ok, warn or fail; `advice` is what to type."""

    level: str
    what: str
    detail: str = ""
    advice: str = ""


def render_findings(findings: list[Finding]) -> str:
    """Return one line for each finding, what would stop the job last."""
    order = ("ok", "warn", "fail")
    lines = []
    for finding in sorted(findings, key=lambda finding: order.index(finding.level)):
        detail = ": ".join(text for text in (finding.what, finding.detail) if text)
        lines.append(f"{finding.level:<4}  {' '.join(f'{detail} {finding.advice}'.split())}")
    return "\n".join(lines)
