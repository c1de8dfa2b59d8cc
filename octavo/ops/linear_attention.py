"""Lightning attention: linear attention whose state decays by a fixed factor a token (MiniMax-01, arXiv 2501.08313,
section 2.2; Lightning Attention-2, arXiv 2401.04658).

Per head, with slope s and a state S of [Dk, Dv]:  S_t = e^-s S_{t-1} + k_t v_t^T,  o_t = q_t^T S_t. There is no
scale, no softmax and no denominator. The state is "as of the last token", decayed by no more (other engines keep it
one decay older: multiply theirs by e^s).

Three forms of it: `recurrent_attention` is the definition, token by token; `chunked_attention` is the fast one for
prompts and training; `decode_step` is one token of many sequences. `linear_attention` picks.

Shapes: N rows of all sequences laid end to end, H heads, Dk and Dv the widths of keys and values, S sequences.
Everything is computed in fp32, or in fp64 where q or the states are, whatever the inputs' dtype and whatever autocast
says: the inputs are widened a block at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from octavo.ops.linear_attention_gpu import fla_attention, fla_is_usable
from octavo.ops.precision import at_least_fp32

BLOCK = 256  # rows a block, as MiniMax trains; any number gives the same result
CPU_BLOCK = 64  # 1.7 times as fast there: products within a block are quadratic in it, and their results stay in cache


def decay_slopes(heads: int, layer: int, layers: int, alibi: bool = True, device: torch.device | None = None) -> Tensor:
    """Slopes s > 0 of a layer's heads, fp32 [heads]: ALiBi's, times 1 - layer / (layers - 1) + 1e-5.

    `layer` counts from 0 over *all* layers, softmax ones too, so that the last ones remember longest. ALiBi's are
    2^(-8h/H) for h = 1 .. H; where H is no power of two, those of the power below it and then every other one of the
    power above it (Press et al. 2022, as in MiniMax's code), or without `alibi` 2^(-8h/H) all the same. Raises
    ValueError for a layer that is none of them: its state would grow.
    """
    if not 0 <= layer < layers:
        raise ValueError(f"layer is {layer}: it must be between 0 and {layers - 1}")
    below = heads if not alibi else 1 << (heads.bit_length() - 1)
    base = [2.0 ** (-8 * h / below) for h in range(1, below + 1)]
    base += [2.0 ** (-8 * h / (2 * below)) for h in range(1, 2 * (heads - below), 2)]
    factor = 1 - layer / max(layers - 1, 1) + 1e-5
    return torch.tensor(base, dtype=torch.float32, device=device) * factor


def recurrent_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, lengths: Sequence[int], initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time; arguments and result of `linear_attention`."""
    initial = _initial(q, k, v, slopes, lengths, initial)
    ratio = (-slopes.to(initial.dtype)).exp()[:, None, None]
    outputs, states = [initial.new_zeros(0, *v.shape[1:])], [initial[:0]]
    rows = iter(zip(*(x.to(initial.dtype) for x in (q, k, v)), strict=True))
    with _full_precision(q):
        for state, length in zip(initial, lengths, strict=True):
            for _ in range(length):
                query, key, value = next(rows)
                state = ratio * state + key[:, :, None] * value[:, None, :]
                outputs.append((query[:, None, :] @ state).transpose(0, 1))
            states.append(state[None])
    return torch.cat(outputs), torch.cat(states)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, lengths: Sequence[int], initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every row's attention over its own sequence, by the fastest form there is for these inputs.

    q, k: [N, H, Dk]; v: [N, H, Dv]; slopes: fp32 [H]; lengths: rows of each sequence, N in all; initial: the state
    each sequence continues from, fp32 [S, H, Dk, Dv], zeros by default. Returns the outputs [N, H, Dv] and the states
    after each sequence's last row [S, H, Dk, Dv], both fp32. Gradients flow to q, k, v and `initial`, from outputs and
    states. Raises ValueError for shapes that do not belong together.
    """
    initial = _initial(q, k, v, slopes, lengths, initial)
    if all(length == 1 for length in lengths):
        return decode_step(q, k, v, slopes, initial)
    if fla_is_usable(q):
        return fla_attention(q, k, v, slopes, lengths, initial)
    return chunked_attention(q, k, v, slopes, lengths, initial, CPU_BLOCK if q.device.type == "cpu" else BLOCK)


def decode_step(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of each of S sequences: q, k [S, H, Dk], v [S, H, Dv], state [S, H, Dk, Dv]; returns as above."""
    q, k, v = (x.to(state.dtype) for x in (q, k, v))
    state = (-slopes.to(state.dtype)).exp()[:, None, None] * state + k[..., :, None] * v[..., None, :]
    with _full_precision(q):
        return (q[..., None, :] @ state)[..., 0, :], state


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    lengths: Sequence[int],
    initial: Tensor | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """`linear_attention` in blocks of `block` rows; a sequence's last block may be shorter.

    Sequences of one length go through together. Memory is linear in N, forward and backward: the backward pass
    recomputes what lies between the inputs and the outputs.
    """
    initial = _initial(q, k, v, slopes, lengths, initial)
    if len(set(lengths)) <= 1:
        return _equally_long(q, k, v, slopes, initial, block)
    groups: dict[int, list[int]] = {}
    for sequence, length in enumerate(lengths):
        groups.setdefault(length, []).append(sequence)
    members = torch.tensor([member for group in groups.values() for member in group], device=q.device)
    rows = list(torch.arange(len(q), device=q.device).split(list(lengths)))
    order = torch.cat([rows[member] for group in groups.values() for member in group])
    # reordered once and then split: an index a group would cost the backward pass a whole gradient a group
    sizes = [length * len(group) for length, group in groups.items()]
    pieces = zip(*(x[order].split(sizes) for x in (q, k, v)), strict=True)
    starts = initial[members].split([len(group) for group in groups.values()])
    parts = [_equally_long(a, b, c, slopes, start, block) for (a, b, c), start in zip(pieces, starts, strict=True)]
    out, states = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return out[order.argsort()], states[members.argsort()]


def _equally_long(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, initial: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """`chunked_attention` of sequences that all have the same number of rows."""
    batch = (x.unflatten(0, (len(initial), -1 if len(x) else 0)).transpose(1, 2) for x in (q, k, v))
    out, states = _Chunked.apply(*batch, slopes, initial, block)
    return out.transpose(1, 2).flatten(0, 1), states


def _initial(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, lengths: Sequence[int], initial: Tensor | None) -> Tensor:
    """The states to start from, in the dtype to compute in, after a check of all shapes."""
    heads, shape = q.shape[1], (len(lengths), q.shape[1], q.shape[2], v.shape[2])
    if k.shape != q.shape or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"q, k and v have shapes {list(q.shape)}, {list(k.shape)} and {list(v.shape)}: they need as "
                         "many rows and heads, and q and k the same width")  # fmt: skip
    if slopes.shape != (heads,):
        raise ValueError(f"slopes have shape {list(slopes.shape)}: there are {heads} heads, so it must be [{heads}]")
    if sum(lengths) != q.shape[0] or any(length < 0 for length in lengths):
        raise ValueError(f"lengths sum to {sum(lengths)}: they must be 0 or more and sum to the {q.shape[0]} rows")
    if initial is None:
        return torch.zeros(shape, dtype=at_least_fp32(q[:0]).dtype, device=q.device)
    if initial.shape != shape:
        raise ValueError(f"the initial states have shape {list(initial.shape)}: expected {list(shape)}")
    return at_least_fp32(initial).to(torch.promote_types(at_least_fp32(q[:0]).dtype, initial.dtype))


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off, which would make matmuls half precision; the meta device has none."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


class _Decay:
    """Decay factors inside a block of up to `size` rows, each [H, ...]. No exponent is ever above 0: scaling keys by
    e^(+s j) instead, as is often done, overflows fp32 within a block."""

    def __init__(self, slopes: Tensor, size: int, dtype: torch.dtype) -> None:
        self._slopes = slopes.to(dtype)[:, None, None]
        place = torch.arange(size, dtype=dtype, device=slopes.device)
        distance = place[:, None] - place
        # -inf before exp: exp first and a mask afterwards would be inf * 0 = NaN
        self._within = (-self._slopes * distance).masked_fill(distance < 0, -torch.inf).exp()
        self._from_start = (-self._slopes * (place[:, None] + 1)).exp()
        self._to_end = (-self._slopes * (size - 1 - place[:, None])).exp()

    def within(self, rows: int) -> Tensor:
        """e^(-s(i-j)) for i >= j, else 0: [H, rows, rows]."""
        return self._within[:, :rows, :rows]

    def from_start(self, rows: int) -> Tensor:
        """e^(-s i) for i = 1 .. rows, what the incoming state has decayed by at each row: [H, rows, 1]."""
        return self._from_start[:, :rows]

    def to_end(self, rows: int) -> Tensor:
        """e^(-s(rows-i)) for i = 1 .. rows, what each row decays by until the last: [H, rows, 1]."""
        return self._to_end[:, self._to_end.shape[1] - rows :]

    def whole(self, rows: int) -> Tensor:
        """e^(-s rows): [H, 1, 1]."""
        return (-self._slopes * rows).exp()


class _Chunked(torch.autograd.Function):
    """Blocks in turn, all heads and sequences of one length at once: q, k [B, H, T, Dk], v [B, H, T, Dv].

    With M, lambda and mu the factors of `_Decay` (within, from_start, to_end) and G the gradient of the state:
    O = (Q K^T . M) V + lambda Q S,  S' = e^(-s m) S + (mu K)^T V;  and with P = dO V^T . M
    dQ = P K + lambda dO S^T,  dK = P^T Q + mu V G^T,  dV = (Q K^T . M)^T dO + mu K G,
    G of the block before = e^(-s m) G + (lambda Q)^T dO.
    The backward pass is made of differentiable operations, so that second derivatives are right too.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, slopes, state)
        ctx.block = block  # type: ignore[attr-defined]
        decay = _Decay(slopes, min(block, q.shape[2]), state.dtype)
        out = torch.empty_like(v, dtype=state.dtype)
        with _full_precision(q):
            for rows in _blocks(q.shape[2], block):
                queries, keys, values = (x[:, :, rows].to(state.dtype) for x in (q, k, v))
                size = queries.shape[2]
                scores = (queries @ keys.transpose(-1, -2)).mul_(decay.within(size))
                out[:, :, rows] = scores @ values + decay.from_start(size) * (queries @ state)
                state = _advance(state, keys, values, decay)
        return out, state.clone() if q.shape[2] == 0 else state

    @staticmethod
    def backward(ctx: FunctionCtx, d_out: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, slopes, state = ctx.saved_tensors  # type: ignore[attr-defined]
        with _full_precision(q):  # a backward pass may be called inside autocast
            return *_gradients(q, k, v, slopes, state, ctx.block, d_out, d_state), None  # type: ignore[attr-defined]


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, block: int, d_out: Tensor, d_state: Tensor
) -> tuple[Tensor | None, ...]:
    """Of q, k, v, none of the slopes, and of the state."""
    blocks = list(_blocks(q.shape[2], block))
    decay = _Decay(slopes, min(block, q.shape[2]), state.dtype)
    dq = torch.empty_like(q, dtype=state.dtype)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    for rows in blocks:  # forwards, for what needs the states
        keys, values = (x[:, :, rows].to(state.dtype) for x in (k, v))
        dq[:, :, rows] = decay.from_start(keys.shape[2]) * (d_out[:, :, rows] @ state.transpose(-1, -2))
        state = _advance(state, keys, values, decay)
    for rows in reversed(blocks):  # backwards, for what needs the gradients of the states
        queries, keys, values = (x[:, :, rows].to(state.dtype) for x in (q, k, v))
        grad, size = d_out[:, :, rows], queries.shape[2]
        within, to_end = decay.within(size), decay.to_end(size)
        d_scores = (grad @ values.transpose(-1, -2)).mul_(within)
        dq[:, :, rows] += d_scores @ keys
        dk[:, :, rows] = d_scores.transpose(-1, -2) @ queries + to_end * (values @ d_state.transpose(-1, -2))
        scores = (queries @ keys.transpose(-1, -2)).mul_(within)
        dv[:, :, rows] = scores.transpose(-1, -2) @ grad + to_end * (keys @ d_state)
        d_state = decay.whole(size) * d_state + (decay.from_start(size) * queries).transpose(-1, -2) @ grad
    return dq.to(q.dtype), dk, dv, None, d_state


def _blocks(length: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, length)) for start in range(0, length, block))


def _advance(state: Tensor, keys: Tensor, values: Tensor, decay: _Decay) -> Tensor:
    """The state after a block."""
    size = keys.shape[2]
    return decay.whole(size) * state + (decay.to_end(size) * keys).transpose(-1, -2) @ values
