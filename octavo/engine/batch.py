"""Shares of a step as the arrays a runner takes."""

from collections.abc import Sequence

import numpy as np

from octavo.engine.runner import StepBatch
from octavo.engine.scheduler import Share


def make_batch(shares: Sequence[Share], wants_hidden: Sequence[bool]) -> tuple[StepBatch, list[int]]:
    """The batch of these shares, and how many rows of results each gets: its last ones.

    wants_hidden: for each share, whether those are hidden states rather than logits.
    """
    ids: list[int] = []
    positions: list[int] = []
    bounds, wanted = [0], []
    logit_rows: list[int] = []
    hidden_rows: list[int] = []
    pages: list[int] = []  # one list for all: an array of it takes half the time of an array filled line by line
    width = max(len(share.sequence.pages) for share in shares)
    for share, hidden in zip(shares, wants_hidden, strict=True):
        sequence, start, end = share.sequence, share.start, share.start + share.count
        ids += sequence.ids[start:end]
        if share.draft:
            ids += sequence.draft[: share.draft]
        positions += range(start, end)
        bounds.append(len(ids))
        pages += sequence.pages
        pages += [-1] * (width - len(sequence.pages))
        wanted.append(min(share.count, max(0, end - sequence.first_wanted)))
        (hidden_rows if hidden else logit_rows).extend(range(len(ids) - wanted[-1], len(ids)))
    batch = StepBatch(
        ids=np.array(ids, np.int64),
        cu_seqlens=np.array(bounds, np.int64),
        positions=np.array(positions, np.int64),
        page_table=np.array(pages, np.int64).reshape(len(shares), width),
        state_slots=np.array([share.sequence.slot for share in shares], np.int64),
        logit_rows=np.array(logit_rows, np.int64),
        hidden_rows=np.array(hidden_rows, np.int64),
    )
    return batch, wanted
