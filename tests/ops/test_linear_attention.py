"""Every form of lightning attention against the float64 recurrence: outputs, final states, all gradients."""

import itertools
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from octavo.ops import linear_attention as ops
from octavo.ops.linear_attention import (
    chunked_attention,
    decay_slopes,
    decode_step,
    linear_attention,
    recurrent_attention,
)
from octavo.ops.linear_attention_gpu import fla_attention, fla_is_usable
from tests.compare import assert_rms

HEADS, KEY, VALUE = 3, 8, 6
LENGTHS = [[1], [255], [256], [257], [600], [300, 1, 7, 513, 7], [5, 3, 9, 5, 3], [5, 5, 5], [1, 1, 1], [0, 4, 256]]
NAMES = ("outputs", "states", "dq", "dk", "dv", "d initial")


def inputs(lengths: list[int], dtype: torch.dtype, heads: int = HEADS, device: str = "cpu") -> list[torch.Tensor]:
    """q, k, v and initial states; the same numbers in every dtype, up to rounding."""
    generator = torch.Generator().manual_seed(len(lengths))
    shapes = [(sum(lengths), heads, KEY), (sum(lengths), heads, KEY), (sum(lengths), heads, VALUE)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    states = torch.randn((len(lengths), heads, KEY, VALUE), generator=generator, dtype=torch.float64)
    values.append(states.to(torch.promote_types(dtype, torch.float32)))
    return [value.to(device).requires_grad_() for value in values]


def everything(form, arguments: list[torch.Tensor], slopes, lengths, initial: bool = True) -> list[torch.Tensor]:
    """Outputs, states and the gradients of a loss that weighs every entry of both differently."""
    q, k, v, states = arguments
    out, final = form(q, k, v, slopes, lengths, states if initial else None)
    generator = torch.Generator().manual_seed(9)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator).to(x.device)).sum() for x in (out, final))
    wanted = arguments if initial else arguments[:3]
    return [out, final, *torch.autograd.grad(loss, wanted)]


@cache
def truth(lengths: tuple[int, ...], initial: bool) -> list[torch.Tensor]:
    """The float64 recurrence, once for all forms."""
    arguments = inputs(list(lengths), torch.float64)
    return everything(recurrent_attention, arguments, decay_slopes(HEADS, 1, 4), list(lengths), initial)


def decoding(q, k, v, slopes, lengths, initial):
    """`decode_step` in a loop, as an engine would."""
    outputs, finals = [], []
    initial = torch.zeros(len(lengths), q.shape[1], KEY, VALUE, dtype=q.dtype) if initial is None else initial
    for rows, state in zip(zip(*(x.split(lengths) for x in (q, k, v)), strict=True), initial.split(1), strict=True):
        for t in range(len(rows[0])):
            out, state = decode_step(*(x[t : t + 1] for x in rows), slopes, state)
            outputs.append(out)
        finals.append(state)
    return torch.cat(outputs), torch.cat(finals)


def in_blocks_of(block: int):
    return lambda *arguments: chunked_attention(*arguments, block=block)


FORMS = {"picked": linear_attention, "chunked": chunked_attention, "blocks of 16": in_blocks_of(16),
         "blocks of 1": in_blocks_of(1), "recurrent": recurrent_attention, "decoding": decoding}  # fmt: skip


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_float64_recurrence(form, lengths, initial) -> None:
    slopes = decay_slopes(HEADS, 1, 4)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        if form == "recurrent" and dtype == torch.float64:
            continue  # that is the truth itself
        actual = everything(FORMS[form], inputs(lengths, dtype), slopes, lengths, initial)
        for name, mine, theirs in zip(NAMES, actual, truth(tuple(lengths), initial), strict=False):
            assert mine.dtype == dtype
            assert_rms(mine, theirs, bound, name)


@pytest.mark.parametrize("lengths", [[5], [3, 0, 9]])
def test_the_recurrence_is_the_sum_it_stands_for(lengths) -> None:
    """o_t = sum_{j <= t} e^(-s(t-j)) (q_t . k_j) v_j + e^(-s t) q_t S_0, spelled out."""
    q, k, v, initial = inputs(lengths, torch.float64)
    slopes = decay_slopes(HEADS, 0, 2).double()
    outputs = []
    for sequence, start in enumerate([0, *itertools.accumulate(lengths)][:-1]):
        for t, head in itertools.product(range(lengths[sequence]), range(HEADS)):
            total = (-slopes[head] * (t + 1)).exp() * (q[start + t, head] @ initial[sequence, head])
            for j in range(t + 1):
                weight = (-slopes[head] * (t - j)).exp() * (q[start + t, head] @ k[start + j, head])
                total = total + weight * v[start + j, head]
            outputs.append(total)
    expected = torch.stack(outputs).view(sum(lengths), HEADS, VALUE)
    assert_rms(recurrent_attention(q, k, v, slopes, lengths, initial)[0], expected, 1e-12)


@pytest.mark.parametrize("cut", [1, 100, 256, 299])
def test_a_prompt_may_be_cut_anywhere(cut) -> None:
    q, k, v, initial = inputs([300], torch.float64)
    slopes = decay_slopes(HEADS, 3, 4)
    whole = linear_attention(q, k, v, slopes, [300], initial)
    first, state = linear_attention(q[:cut], k[:cut], v[:cut], slopes, [cut], initial)
    second, state = linear_attention(q[cut:], k[cut:], v[cut:], slopes, [300 - cut], state)
    assert_rms(torch.cat((first, second)), whole[0], 1e-12)
    assert_rms(state, whole[1], 1e-12)


def test_half_precision_inputs_are_computed_in_fp32() -> None:
    """Outputs and states are as exact as the inputs allow; only the gradients are rounded, once."""
    lengths, slopes = [300, 40], decay_slopes(HEADS, 1, 4)
    half = inputs(lengths, torch.bfloat16)
    wide = [value.detach().double().requires_grad_() for value in half]
    expected = everything(recurrent_attention, wide, slopes, lengths)
    actual = everything(linear_attention, half, slopes, lengths)
    for name, mine, theirs in zip(NAMES, actual, expected, strict=True):
        rounded = name in ("dq", "dk", "dv")
        assert mine.dtype == (torch.bfloat16 if rounded else torch.float32)
        assert_rms(mine, theirs, 2e-3 if rounded else 1e-5, name)  # one rounding to bf16 is 1.7e-3


@pytest.mark.parametrize("lengths", [[300], [1, 1]], ids=str)
@pytest.mark.parametrize("form", [linear_attention, recurrent_attention])
def test_autocast_does_not_reach_inside(form, lengths) -> None:
    """Forward or backward: a loss is often differentiated inside the same block."""
    slopes = decay_slopes(HEADS, 1, 4)
    expected = everything(form, inputs(lengths, torch.float32), slopes, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = everything(form, inputs(lengths, torch.float32), slopes, lengths)
    for name, mine, theirs in zip(NAMES, actual, expected, strict=True):
        # outside of our code autograd differentiates the recurrence under autocast
        bound = 1e-12 if form is linear_attention or name in ("outputs", "states") else 1e-2
        assert_rms(mine, theirs, bound if lengths == [300] or name in ("outputs", "states") else 1e-2, name)


@pytest.mark.parametrize("form", [linear_attention, chunked_attention, recurrent_attention])
def test_the_widest_of_queries_and_states_decides(form) -> None:
    q, k, v, initial = (x.detach() for x in inputs([20], torch.float64))
    slopes = decay_slopes(HEADS, 1, 4)
    for queries, states in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        out, final = form(q.to(queries), k.to(queries), v.to(queries), slopes, [20], initial.to(states))
        assert out.dtype == final.dtype == torch.float64
    out, final = form(q.float(), k.float(), v.float(), slopes, [20], initial.bfloat16())
    assert out.dtype == final.dtype == torch.float32


def test_second_derivatives() -> None:
    arguments = [x.detach()[:, :1, :3].contiguous().requires_grad_() for x in inputs([5, 4], torch.float64)[:3]]
    initial = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def form(q, k, v, initial):
        return chunked_attention(q, k, v, decay_slopes(1, 0, 3), [5, 4], initial, 2)

    assert torch.autograd.gradgradcheck(form, (*arguments, initial))


@pytest.mark.parametrize("slope", [0.0, 1e-6, 0.917, 50.0, 1e4])
def test_no_exponent_is_positive(slope, monkeypatch) -> None:
    """From no decay at all to states that vanish within a token; e^(+s j) would overflow at the third of these."""
    largest = -float("inf")

    def exp(self: torch.Tensor, original=torch.Tensor.exp) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, self.max().item())
        return original(self)

    slopes, lengths = torch.full((HEADS,), slope), [600, 1, 30]
    expected = everything(recurrent_attention, inputs(lengths, torch.float64), slopes, lengths)
    monkeypatch.setattr(torch.Tensor, "exp", exp)
    actual = everything(linear_attention, inputs(lengths, torch.float32), slopes, lengths)
    assert largest == 0
    for name, mine, theirs in zip(NAMES, actual, expected, strict=True):
        if theirs.norm() > 1e-30:
            assert_rms(mine, theirs, 1e-5, name)
        else:
            assert name == "d initial" and slope > 1 and mine.abs().max() < 1e-30


# ---- slopes


def test_slopes_of_the_released_model() -> None:
    """80 layers of 64 heads, softmax at l % 8 == 7: how many heads remember how many tokens (1/s)."""
    memory = torch.stack([1 / decay_slopes(64, layer, 80) for layer in range(80) if layer % 8 != 7])
    assert memory.shape == (70, 64) and memory.dtype == torch.float32
    assert round(memory.min().item(), 2) == 1.09 and round(memory.max().item()) == 20208
    assert [(memory > tokens).sum().item() for tokens in (1000, 5000, 10_000, 20_000)] == [205, 31, 10, 1]
    assert torch.equal(decay_slopes(64, 0, 80)[[7, 63]], torch.tensor([0.5, 2.0**-8]) * (1 + 1e-5))


def test_slopes_where_heads_are_no_power_of_two() -> None:
    exponents = {6: [2, 4, 6, 8, 1, 3], 3: [4, 8, 2], 1: [8], 12: [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]}
    for heads, expected in exponents.items():
        assert_rms(decay_slopes(heads, 0, 1), 2.0 ** -torch.tensor(expected) * (1 + 1e-5), 1e-7)
    assert_rms(decay_slopes(6, 0, 1, alibi=False), 2.0 ** (-8 / 6 * torch.arange(1, 7)) * (1 + 1e-5), 1e-7)


def test_the_last_layer_still_decays() -> None:
    assert_rms(decay_slopes(4, 7, 8), torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]) * 1e-5, 1e-7)


# ---- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": torch.ones(4)}, r"slopes have shape \[4\]: there are 3 heads"),
        ({"slopes": torch.ones(3, 1, 1)}, r"slopes have shape \[3, 1, 1\]"),
        ({"lengths": [3, 3]}, "lengths sum to 6: they must be 0 or more and sum to the 5 rows"),
        ({"lengths": [6, -1]}, "lengths sum to 5: they must be 0 or more"),
        ({"k": torch.ones(1, 3, 8)}, r"shapes \[5, 3, 8\], \[1, 3, 8\] and \[5, 3, 6\]"),
        ({"k": torch.ones(5, 3, 6)}, "q and k the same width"),
        ({"v": torch.ones(5, 1, 6)}, "as many rows and heads"),
        ({"initial": torch.zeros(2, 3, 8, 6)}, r"initial states have shape \[2, 3, 8, 6\]: expected \[1, 3, 8, 6\]"),
        ({"initial": torch.zeros(1, 3, 6, 8)}, "initial states"),
    ],
)
@pytest.mark.parametrize("form", [linear_attention, chunked_attention, recurrent_attention])
def test_shapes_that_do_not_belong_together(form, change, message) -> None:
    q, k, v, initial = inputs([5], torch.float32)
    arguments = {"q": q, "k": k, "v": v, "slopes": torch.ones(3), "lengths": [5], "initial": initial} | change
    with pytest.raises(ValueError, match=message):
        form(**arguments)


@pytest.mark.parametrize("layer", [-1, 4, 9])
def test_a_layer_that_is_none_of_them_has_no_slopes(layer) -> None:
    with pytest.raises(ValueError, match=f"layer is {layer}: it must be between 0 and 3"):
        decay_slopes(4, layer, 4)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
@pytest.mark.parametrize("form", [linear_attention, chunked_attention, recurrent_attention])
def test_no_rows_leave_the_states_as_they_are(form, lengths) -> None:
    q, k, v, initial = inputs(lengths, torch.float32)
    out, states = form(q, k, v, torch.ones(3), lengths, initial)
    assert out.shape == (0, HEADS, VALUE) and torch.equal(states, initial)
    assert not lengths or states.data_ptr() != initial.data_ptr()


# ---- memory

MEMORY = """
import sys, torch
from octavo.ops.linear_attention import chunked_attention, decay_slopes
tokens = int(sys.argv[1])
torch.set_num_threads(1)
q, k, v = (torch.ones(tokens, 4, 32).requires_grad_() for _ in range(3))
out, _ = chunked_attention(q, k, v, decay_slopes(4, 0, 2), [tokens])
out.sum().backward()
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_of_the_backward_pass_is_linear() -> None:
    """Each doubling of the tokens costs twice what the doubling before did, not four times."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    peaks = []
    for tokens in (16384, 32768, 65536):
        command = [sys.executable, "-c", MEMORY, str(tokens)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        peaks.append(int(run.stdout))
    first, second = peaks[1] - peaks[0], peaks[2] - peaks[1]
    per_token = second * 1024 / 32768 / (4 * 32 * 4)
    print(f"peaks {peaks} KiB; {per_token:.1f} arrays of q's size")
    assert 1.5 < second / first < 2.5 and per_token < 16


# ---- on a GPU


def chunk_simple_gla(q, k, v, g_gamma=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None,
                     cu_seqlens_cpu=None):  # fmt: skip
    """What the library's function of this name documents: log decays, [1, T, H, D], a scale of its own by default."""
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (q, k, v, initial_state))
    assert output_final_state and cu_seqlens.tolist() == cu_seqlens_cpu.tolist()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lengths = cu_seqlens.diff().tolist()
    out, states = recurrent_attention(q[0] * scale, k[0], v[0], -g_gamma, lengths, initial_state)
    return out[None], states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_library_is_asked_for_our_attention(dtype, monkeypatch) -> None:
    """Its slopes, scale, layout and dtype; without a GPU its contract stands in for the library."""
    for name in ("fla", "fla.ops", "fla.ops.simple_gla"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.ops.simple_gla"].chunk_simple_gla = chunk_simple_gla
    lengths, slopes = [70, 1, 5], decay_slopes(HEADS, 1, 4)
    arguments = inputs(lengths, dtype)
    wide = [x.detach().double().requires_grad_() for x in arguments]
    expected = everything(recurrent_attention, wide, slopes, lengths)
    for name, mine, theirs in zip(NAMES, everything(fla_attention, arguments, slopes, lengths), expected, strict=True):
        assert_rms(mine, theirs, 1e-5 if mine.dtype == torch.float32 else 2.0**-8, name)


def test_the_cpu_never_asks_the_gpu_library(monkeypatch) -> None:
    monkeypatch.setattr("octavo.ops.linear_attention_gpu._installed", lambda: True)
    assert not fla_is_usable(torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and find_spec("fla")), reason="needs CUDA and the gpu extra")
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_gpu_kernels_equal_the_float64_recurrence(lengths, initial, monkeypatch) -> None:
    """TRITON_F32_DEFAULT=ieee must be set before Triton starts; with TF32 products the bound is 13 bits wider."""
    exact = os.environ.get("TRITON_F32_DEFAULT") == "ieee"
    slopes, expected = decay_slopes(HEADS, 1, 4), truth(tuple(lengths), initial)
    called = []
    monkeypatch.setattr(ops, "fla_attention", lambda *arguments: called.append(1) or fla_attention(*arguments))
    arguments = inputs(lengths, torch.float32, device="cuda")
    actual = everything(linear_attention, arguments, slopes.cuda(), lengths, initial)
    assert called or set(lengths) == {1}
    for name, mine, theirs in zip(NAMES, actual, expected, strict=False):
        assert_rms(mine.cpu(), theirs, 1e-5 if exact else 3e-3, name)
