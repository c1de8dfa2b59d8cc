"""What a server may be told, beside its models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeOptions:
    """Defaults suit one person on their own machine.

    keep_alive: seconds of silence after which a stream sends a comment: proxies and browsers give up on a silent
    connection, and a long prompt takes its time. max_body_bytes: of a request, refused before it is parsed.
    default_max_tokens: of an answer, where a request says nothing.
    """

    keep_alive: float = 15.0
    max_body_bytes: int = 4 * 2**20
    default_max_tokens: int = 512
