"""Secrets that are not where secrets belong."""

import re

TOKENS = (
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an access key of AWS
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|(?<![\w./-])sk-[\w-]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."  # a JSON web token
    r"|://[^\s/:@]+:[^\s/@$]+@"  # user and password in a URL
    r"|(?i:aws_secret_access_key)\s*[=:]\s*\S{20,}"
)

MARKS = (
    *("AKIA", "ASIA", "PRIVATE KEY-----", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_"),
    *("glpat-", "hf_", "sk-", "xox", "eyJ", "@", "aws_secret_", "AWS_SECRET_"),
)
SHORTEST = 10  # characters: ftp://a:b@
"""A text in which TOKENS is found has one of MARKS: most have none, and that is seen sooner."""

SECRET_ENDINGS = (
    *("PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "CREDENTIAL", "CREDENTIALS"),
    *("API_KEY", "APIKEY", "ACCESS_KEY", "PRIVATE_KEY"),
)
REFERENCE_ENDINGS = ("_NAME", "_ARN", "_FILE", "_PATH", "_DIR", "_URL", "_ID")
SETTINGS = frozenset({"", "true", "false", "none", "null", "yes", "no", "on", "off"})


def credential(value: str) -> bool:
    """Tell whether there is something in a text that looks like a key, a token or a password."""
    if len(value) < SHORTEST or not any(mark in value for mark in MARKS):
        return False
    return re.search(TOKENS, value) is not None


def secret_variable(name: str, value: str) -> bool:
    """Tell whether an environment variable seems to hold a secret, by its name or its value."""
    upper = name.upper()
    named = upper.endswith(SECRET_ENDINGS) or "SECRET" in upper
    if named and not upper.endswith(REFERENCE_ENDINGS) and not _is_setting(value):
        return True
    return credential(value)


def _is_setting(value: str) -> bool:
    """Tell switches and counts that are called like secrets, and references to other variables."""
    reference = value.startswith("$(") and value.endswith(")")
    return reference or value.lower() in SETTINGS or (value.isdigit() and len(value) <= 8)
