"""The keys of a server: who may use it, and whose conversations may share a cache.

Only hashes are kept, so that no message, log or dump of this process's objects has a key in it.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

from octavo.errors import UsageError, UserError
from octavo.serve.errors import ApiError

_TENANT_HEX = 16  # of a hash: 64 bits, enough to tell the keys of one server apart


class Keys:
    """API keys, by their SHA-256. False when there are none: then anybody on this machine may come in."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises UsageError for a key that no header could carry; it is not repeated in the message."""
        self._digests: list[bytes] = []
        for key in keys:
            if not key or not all("!" <= character <= "~" for character in key):
                raise UsageError("an API key is empty, or has characters other than visible ASCII: choose another")
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"<{len(self)} API keys>"

    def tenant(self, authorizations: Sequence[bytes]) -> str:
        """Whose request this is, from its Authorization headers: part of the key's hash, "" where no keys are needed.

        Raises ApiError 401 without a key, with an unknown one, and with several.
        """
        if not self:
            return ""
        kind, _, key = (authorizations[0] if len(authorizations) == 1 else b"").strip().partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # every one is compared, each in constant time: how long it takes tells nothing of which was near
        known = [hmac.compare_digest(digest, each) for each in self._digests]
        if kind.lower() != b"bearer" or not any(known):
            message = "this server needs an API key: send one of its own as 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return digest.hex()[:_TENANT_HEX]


def read_keys(path: str | Path) -> list[str]:
    """The keys of a file, one a line; blank lines and those that begin with # are left out.

    Raises UserError for a file that cannot be read, or has none: a server that was to be closed must not be open.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"--api-key-file {path}: cannot be read ({reason})") from None
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path}: there is no key in it; write one a line")
    return keys
