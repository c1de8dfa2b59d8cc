"""Who holds which page of keys and values. A page that neither a sequence nor the prefix cache holds is free."""

from collections.abc import Iterable


class PagePool:
    """Counts of holders for each of `num_pages` pages: sequences that run, and entries of the prefix cache.

    A page may have many of both: sequences share what they have in common, and where an entry of the cache was split or
    continued in the middle of a page, both parts hold it. Misuse (giving back what is not held) raises ValueError.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._held = [0] * num_pages
        self._cached = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # low numbers first: less memory is touched
        self._evictable = 0

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def evictable(self) -> int:
        """Pages that only the prefix cache holds."""
        return self._evictable

    def take(self, count: int) -> list[int]:
        """`count` free pages, now held by one sequence. Raises ValueError when there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._held[page] = 1
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        """One more sequence holds these pages, which somebody must hold already."""
        for page in pages:
            if not self._held[page]:
                if not self._cached[page]:
                    raise ValueError(f"page {page} is free: it holds nothing to share")
                self._evictable -= 1
            self._held[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """A sequence lets go of these pages."""
        for page in pages:
            if not self._held[page]:
                raise ValueError(f"page {page} is not held by a sequence")
            self._held[page] -= 1
            if not self._held[page]:
                if self._cached[page]:
                    self._evictable += 1
                else:
                    self._free.append(page)

    def cache(self, pages: Iterable[int]) -> None:
        """One more entry of the prefix cache holds these pages, which somebody must hold already."""
        for page in pages:
            if not self._held[page] and not self._cached[page]:
                raise ValueError(f"page {page} is free: it holds nothing to keep")
            self._cached[page] += 1

    def uncache(self, pages: Iterable[int]) -> None:
        """An entry of the prefix cache lets go of these pages."""
        for page in pages:
            if not self._cached[page]:
                raise ValueError(f"page {page} is not held by the prefix cache")
            self._cached[page] -= 1
            if not self._cached[page] and not self._held[page]:
                self._evictable -= 1
                self._free.append(page)

    def holders(self, page: int) -> tuple[int, int]:
        """How many sequences and how many entries of the cache hold a page."""
        return self._held[page], self._cached[page]
