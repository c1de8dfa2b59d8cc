"""How much one key may have under way. Prices and budgets come with accounts."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from octavo.serve.errors import ApiError

RETRY_SECONDS = 1


class Quota:
    """Requests under way of each tenant. Used from one event loop."""

    def __init__(self, most: int | None) -> None:
        """most: requests of one key at once, None for any number."""
        self._most = most
        self._under_way: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_of(self, tenant: str) -> Iterator[None]:
        """Within, one more is under way. Raises ApiError 429 where the key has as many as it may."""
        if tenant and self._most is not None and self._under_way[tenant] >= self._most:
            raise ApiError(
                429,
                f"this key has {self._most} requests under way, as many as it may: wait for one to end",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._under_way[tenant] += 1
        try:
            yield
        finally:
            self._under_way[tenant] -= 1
            if not self._under_way[tenant]:
                del self._under_way[tenant]
