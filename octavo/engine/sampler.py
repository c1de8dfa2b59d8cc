"""Choose a request's next token from its logits: penalties, bias, a grammar's mask, then greedy or a seeded draw."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams
from octavo.engine.draw import Draw, draw_row
from octavo.engine.penalties import Penalties, check_logit_bias


class Sampler:
    """The choices of answer number `choice` to one request; it lives as long as the answer, through preemptions too.

    The same parameters, prompt and logits give the same tokens, whatever else runs beside it.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int] = (), choice: int = 0, vocab_size: int | None = None
    ) -> None:
        """prompt: its token ids, for the repetition penalty. Raises UserError for a logit bias outside `vocab_size`, if
        that is given; otherwise `choose` does."""
        if vocab_size is not None:
            check_logit_bias(params, vocab_size)
        self._params = params
        self._penalties = Penalties(params, prompt)
        self._random = np.random.Generator(np.random.PCG64(_seeds(params.seed, choice)))

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token, which is also noted. Ties go to the lowest id.

        logits: fp32 [vocab], left as they are; allowed: bool [vocab], what a grammar lets be. Raises ValueError where
        the model's logits are not numbers (NaN, +inf or none finite), and where none of the allowed is finite.
        """
        if not np.isfinite(logits.max()):  # NaN, too
            raise ValueError("the model returned logits that are not numbers")
        if allowed is not None or self._penalties.active:
            logits = self._adjusted(logits, allowed)
        token = draw_row(logits, self._draw())
        if token < 0:
            raise ValueError("no token is left: the model gives those that are allowed no chance at all")
        self.note(token)
        return token

    def wish(self, row: int) -> Draw | None:
        """What `choose` would do with this row, for many rows to be drawn from together; None where it does more than
        draw. Takes the random number: the token that comes of it must be noted, and `choose` not be asked."""
        return None if self._penalties.active else self._draw(row)

    def note(self, token: int) -> None:
        """Count a token of the answer that `choose` did not choose."""
        self._penalties.note(token)

    def _adjusted(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != logits.shape):
            raise ValueError(f"allowed is {allowed.dtype} {list(allowed.shape)} for {len(logits)} logits")
        adjusted = logits.copy()
        if self._penalties.active:
            self._penalties.apply(adjusted)
        if allowed is not None:
            # 0 where allowed, else -inf: a tenth of what np.where or np.copyto take for a mask without long runs
            with np.errstate(divide="ignore"):
                adjusted += 1 - 1 / allowed.astype(np.float32)
        return adjusted

    def _draw(self, row: int = 0) -> Draw:
        # one draw a token, by inversion: the number of random values used never depends on the logits
        params = self._params
        drawn = self._random.random() if params.temperature else 0.0
        return Draw(row, params.top_k, params.temperature, params.top_p, params.min_p, drawn)


def _seeds(seed: int | None, choice: int) -> np.random.SeedSequence:
    """Choice 0 has the seed itself; the others' sequences are its children, independent of it and of each other."""
    return np.random.SeedSequence(seed, spawn_key=(choice,) if choice else ())
