"""Credentials in addresses: where they stand in a URL, and where they belong instead."""

from __future__ import annotations

import re
from urllib.parse import unquote

LOGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/:\[]*):([^\s@](?:(?!://)[^@\n])*)@", re.IGNORECASE)
PORT = re.compile(r"\d{1,5}(?:[/?#,\s]|$)")  # https://host:8080/a@b has no password
WEB = ("http", "https", "s3", "gs", "file")  # their paths may hold @; a database's password /
TOKEN = re.compile(r"(https?)://([^\s/:@?#]+):?@", re.IGNORECASE)
PARAMETER = re.compile(r"(?<=[?&;#=])([\w.-]+)=(?=[^&;#\s])")
SECRET = re.compile(
    r"(password|passwd|passphrase|token|secret|signature|credentials?|(api|access|account)[-_]?key"
    r"|(^|[-_.])(key|pass|pwd|sig|auth|authorization|jwt|sas))$",
    re.IGNORECASE,
)
NETRC = (
    "write 'machine HOST login USER password PASSWORD' into ~/.netrc (or the file that NETRC "
    "names), or set GENBENCH_HTTP_HOST and GENBENCH_HTTP_TOKEN"
)
WAYS_OUT = {
    "http": NETRC,
    "https": NETRC,
    "s3": "leave it to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "gs": "leave it to the file that GOOGLE_APPLICATION_CREDENTIALS names",
    "postgresql": "leave it to ~/.pgpass or the like (PGPASSWORD)",
    "mysql": "leave it to an option file, as in ?read_default_file=/home/me/.my.cnf",
}
WAYS_OUT |= {"postgres": WAYS_OUT["postgresql"], "mariadb": WAYS_OUT["mysql"]}


def wrong_in(text: str) -> str:
    """What a URL in ``text`` should not hold, and the way out; "" where there is nothing."""
    if "://" not in text:
        return ""
    for found in LOGIN.finditer(text):
        if _is_login(found):
            return _refusal("a password", found[1])
    token = TOKEN.search(text)
    if token:
        return _refusal("a login", token[1])
    name = _parameter(text) or _parameter(unquote(text))
    if not name:
        return ""
    scheme = re.search(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE)
    return _refusal(f"{name!r} in a URL", scheme[1] if scheme else "")


def without_credentials(text: str) -> str:
    """The text with ``***`` in the place of passwords, logins and secret parameters of URLs."""
    if "://" not in text:
        return text
    text = LOGIN.sub(
        lambda found: f"{found[1]}://{found[2]}:***@" if _is_login(found) else found[0], text
    )
    text = TOKEN.sub(r"\1://***@", text)
    text = re.sub(rf"{PARAMETER.pattern}[^&;#\s'\"]+", _hidden, text)
    if "%" in text and _parameter(unquote(text)):
        text = re.sub(r"(?<=\?)\S*%\S*", "***", text)
    return text


def _parameter(text: str) -> str:
    """Name of the first parameter that is named like a secret and has a value, or ""."""
    names = (
        found[1] for found in PARAMETER.finditer(text) if not text.startswith("***", found.end())
    )
    return next((name for name in names if SECRET.search(name)), "")


def _is_login(found: re.Match[str]) -> bool:
    """Whether ``user:...@`` is no port and the path behind it."""
    return found[1].lower() not in WEB or not PORT.match(found[3])


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}=***" if SECRET.search(found[1]) else found[0]


def _refusal(what: str, scheme: str) -> str:
    kind = scheme.lower().partition("+")[0]
    way_out = WAYS_OUT.get(kind, "leave it to the environment")
    return f"holds {what}, and settings are recorded; {way_out}"
