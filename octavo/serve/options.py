"""What a server may be told, beside its models."""

from dataclasses import dataclass, field

from octavo.serve.keys import Keys


@dataclass(frozen=True)
class ServeOptions:
    """Defaults suit one person on their own machine.

    keep_alive: seconds of silence after which a stream sends a comment: proxies and browsers give up on a silent
    connection, and a long prompt takes its time. stream_interval: seconds in which what comes is sent together, each
    token still an event of its own. max_body_bytes: of a request, refused before it is parsed.
    default_max_tokens: of an answer, where a request says nothing. keys: those that clients need, if there are any;
    requests_per_key: how many each may have under way.
    body_seconds: for a client to send its request's body. drain_seconds: for answers to end when the server is to stop.
    log_requests: whether each request leaves a line in the log, without what was asked and answered.
    """

    keep_alive: float = 15.0
    stream_interval: float = 0.03
    max_body_bytes: int = 4 * 2**20
    default_max_tokens: int = 512
    keys: Keys = field(default_factory=Keys)
    requests_per_key: int | None = None
    body_seconds: float = 60.0
    drain_seconds: float = 30.0
    log_requests: bool = False
