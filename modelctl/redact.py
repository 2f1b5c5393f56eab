"""Hides everything that looks like a key or a password in a reason, before the reason is stored.

Applications pass on the answers of providers, and providers quote keys, headers and URLs in their
errors. Every operator sees a reason, and the history keeps it, so it must hold no key. The formats of
keys are those that the providers document. A word that only looks like a key is hidden too: without
it, the reason is still useful.
"""

from __future__ import annotations

import functools
import re

from modelctl.model import storable

HIDDEN = "***"
# Characters of a reason that are looked at: a second for each megabyte, and 500 are stored.
_LONGEST = 1 << 16

# Keys that are recognised by their first characters, at the beginning of a word.
_KEYS = (
    # JSON Web Tokens: the first part is base64 of '{"'.
    r"eyJ[\w-]{6,}(?:\.[\w-]*)+",
    # sk-..., sk-ant-..., sk-proj-... and the like: with a digit, or long. A masked key has stars.
    r"(?:sk|SK|pk|rk|csk|gsk)[-_](?:(?=[\w*-]*\d)[\w*-]{4,}|[\w*-]{16,})",
    # Google: API keys, OAuth tokens and secrets.
    r"AIza[\w-]{10,}|ya29\.[\w-]{10,}|GOCSPX-[\w-]{10,}",
    # AWS: ids of access keys, and keys of Bedrock.
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}|(?:ABSK|bedrock-api-key-)[A-Za-z0-9+/_-]{8,}=*",
    # AWS: secret keys, which have no prefix: 40 characters of base64, with capitals, small letters and
    # digits.
    r"(?=[A-Za-z0-9/+]{0,39}[A-Z])(?=[A-Za-z0-9/+]{0,39}[a-z])(?=[A-Za-z0-9/+]{0,39}\d)"
    r"(?<![\w/+-])[A-Za-z0-9/+]{40}(?![\w/+-])",
    # GitHub, GitLab, Hugging Face, Replicate, Fireworks, Together, npm, DigitalOcean.
    r"(?:gh[opsur]|github_pat|glpat|hf|api_org|r8|fw|tgp_v1|npm|dop_v1)[_-][\w-]{16,}",
    # Grafana, Sentry, PyPI, LangSmith, Pinecone, Supabase, Stripe's webhooks, New Relic, Vault.
    r"(?:glc|glsa|sntry[su]|pypi|lsv2|pcsk|sbp|whsec|NRAK)[_-][\w+/-]{16,}=*|hvs\.[\w-]{16,}",
    # xAI, Perplexity, NVIDIA, Slack, Voyage, Jina, Tavily, Firecrawl, Databricks.
    r"(?:xai|pplx|nvapi|xox[a-z]|xapp|pa|jina|tvly|fc)[-_][\w-]{16,}|dapi[0-9a-f]{16,}",
)
_CALLED = "(?:passw(?:or)?d|passphrase)"
# Words that follow "password is" in ordinary sentences ("the password is wrong"): they are not hidden.
_SAID = (
    "an?|the|not|no|never|too|also|only|still|now|already|always|in|at|on|of|for|from|to|by|as|what"
    "|that|set|unset|ok|valid|invalid|correct|incorrect|right|wrong|bad|missing|empty|blank|null|none"
    "|weak|short|long|unknown|different|mandatory|optional|sent|kept|there|absent|case|more|less"
)
# Secrets that are recognised by the words before them. These words stay.
_BEFORE = (
    r"bearer:? +(?=[\w.+/~=-]{4})",
    r"basic +(?=[\w+/-]{8})(?=[\w+/-]*(?-i:[A-Z0-9]))",
    r"(?:token|key) +(?=[\w.-]*\d)(?=[\w.-]{20})",
    r"(?:token|key|secret) (?:is|was) +[\"']?(?=[\w.-]*\d)(?=[\w.-]{8})",
    rf"[\w-]{{0,40}}{_CALLED} (?:is|was) +(?!(?:{_SAID}|[a-z]+(?:ed|ing))\b(?![\w-]))[\"']?(?=[^\s\"'])",
    rf"[\w-]{{0,40}}{_CALLED} +(?=[^\s\"']*\d)(?=[^\s\"']{{6}})",
)
# Names of secrets in headers, JSON, query strings and environment variables.
_NAMES = (
    r"(?:api[ _-]?key|access[ _-]?key|account[ _-]?key|private[ _-]?key|subscription[ _-]?key|secret"
    r"|passw(?:or)?d|credential|signature"
    r"|(?:access|api|auth|bearer|id|refresh|security|session)[_-]?token)[\w-]{0,40}"
    r"|\bpwd|\bjwt|\b(?:token|sig)(?==)|(?<=[?&])(?:key|sig|token|auth|code)(?==)"
)
_PEM = r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
# user:password@ in a URL, or a user name that is a token.
_LOGIN = r"://(?:[^\s/@:\"'<>]*:[^\s/\"'<>]*|[\w.~%+-]{20,})(?=@)"


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Compile the patterns on first use, because most commands store no reason."""
    return (
        # name = value, "name": "value", name: value. A header may have several words: the rest of its
        # line is hidden.
        re.compile(
            rf"(?:(?P<name>(?:{_NAMES})(?: (?:provided|given|is))?[\"']?\s*[:=]\s*)"
            r"(?P<quote>[\"'])?(?(quote)(?:(?!(?P=quote)).)*|[^\s\"',;&}\])]+)"
            r"|(?P<header>\b(?:authorization|cookie)[\"']?\s*[:=]\s*[\"']?)"
            r"[^\r\n\"']+)",
            re.IGNORECASE | re.DOTALL,
        ),
        re.compile(rf"\b(?P<before>{'|'.join(_BEFORE)})[^\s\"',;}}\]]+", re.IGNORECASE),
        re.compile(rf"\b(?:{'|'.join(_KEYS)})|(?P<login>{_LOGIN})|{_PEM}", re.DOTALL),
    )


def redact(text: str) -> str:
    """Return *text* with ``***`` in place of what looks like a key, a token or a password."""
    named, before, keys = _patterns()
    if ":" in text or "=" in text:
        text = named.sub(lambda m: f"{m['name'] or m['header']}{m['quote'] or ''}{HIDDEN}", text)
    text = before.sub(lambda m: f"{m['before']}{HIDDEN}", text)
    return keys.sub(lambda m: f"{'://' if m['login'] else ''}{HIDDEN}", text)


# The failures of a batch often share a few reasons, and one takes 20 microseconds.
_redact_again = functools.lru_cache(maxsize=256)(redact)


def storable_reason(reason: str | None, length: int) -> str | None:
    """Return *reason* as it may be stored: without keys, then cut to *length* characters.

    An empty reason becomes None.
    """
    if not reason:
        return None
    reason = storable(reason, max(_LONGEST, 2 * length))
    return storable((_redact_again if len(reason) <= 2000 else redact)(reason), length)
