"""What a server of shards asks for: kept in the user's own files and environment, not in settings.

Each login belongs to one host, and is sent to no other, wherever a configuration leads.
"""

from __future__ import annotations

import netrc
import os
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

from src.errors import DataError

HOST, TOKEN = "GENBENCH_HTTP_HOST", "GENBENCH_HTTP_TOKEN"
WAY_OUT = (
    "write 'machine {host} login USER password PASSWORD' into ~/.netrc (or the file that NETRC "
    f"names), or set {HOST}={{host}} and {TOKEN}"
)


def authorization(url: str) -> str | None:
    """The header ``Authorization`` for a URL, from the environment or netrc; None without a login.

    Raises DataError where the netrc file cannot be read.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    token = os.environ.get(TOKEN)
    if token and os.environ.get(HOST) in (host, parts.netloc):
        return f"Bearer {token}"
    login = _of_netrc(host)
    if login is None:
        return None
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"


def refused(url: str) -> str:
    """What to do where a server wants a login."""
    return WAY_OUT.format(host=urlsplit(url).hostname)


def _of_netrc(host: str) -> tuple[str, str] | None:
    """User and password of the machine named ``host``; ``default`` would go to any server."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        if not path.is_file():
            return None
        found = netrc.netrc(path).hosts.get(host)
    except netrc.NetrcParseError as error:  # its message may show a password
        raise DataError(f"{path}, line {error.lineno}: is not in netrc's format") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is not in netrc's format"
        raise DataError(f"{path}: {why}; it holds logins of servers, see NETRC") from None
    return None if found is None else (found[0] or "", found[2] or "")
