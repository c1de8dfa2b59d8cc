"""What Python hands to the core is looked at before a pointer is passed; checksums; the choice of kernels."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.native.library import LIBRARY, Library, NativeUnavailable, library
from octavo.native.library import library as library_function
from tests.native.kernels import isas, using

pytestmark = pytest.mark.parametrize("isa", isas()[:1], indirect=True)
ROOT = Path(__file__).parents[2]


def good(bits: int) -> dict[str, object]:
    """Arguments of `pack` for [40, 70], written to the second unit of three and the one after next."""
    weights = {4: np.zeros((40, 35), np.uint8), 8: np.zeros((40, 70), np.int8), 16: np.zeros((40, 70), np.uint16)}[bits]
    packed = np.zeros(library().packed_bytes(4 * 32, 70, bits), np.uint8)
    scales = None if bits == 16 else np.zeros((40, 3), np.float16)
    return {"packed": packed, "weights": weights, "scales": scales, "cols": 70, "first": 1, "step": 2}


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_packing_refuses_what_does_not_fit(isa, bits) -> None:
    library().pack(**good(bits))
    args = good(bits)
    for change in (
        {"weights": args["weights"][:, :-1]},
        {"weights": args["weights"].astype(np.int16)},
        {"weights": args["weights"].astype(np.float32)},
        {"weights": np.asfortranarray(args["weights"])},
        {"weights": args["weights"][None]},
        {"packed": args["packed"][:-1]},
        {"packed": np.zeros(2 * args["packed"].nbytes, np.uint8)[::2]},
        {"packed": args["packed"].view(np.int8)},
        {"packed": frozen(args["packed"].copy())},
        {"cols": 102},
        {"cols": 72 if bits == 4 else 71},
        {"cols": 0},
        {"cols": -70},
        {"first": -1},
        {"first": 2},
        {"step": 0},
        {"step": -1},
        {"step": 3},
        *_scales_that_do_not_fit(args["scales"]),
    ):
        with pytest.raises(ValueError, match="weights|scales are|packed holds|packed is read-only|contiguous"):
            library().pack(**args | change)


def _scales_that_do_not_fit(scales: np.ndarray | None) -> list[dict[str, object]]:
    if scales is None:
        return [{"scales": np.zeros((40, 3), np.float16)}]
    return [
        {"scales": None},
        {"scales": scales.astype(np.float32)},
        {"scales": scales[:, :2]},
        {"scales": scales[:39]},
        {"scales": scales[::-1]},
        {"scales": scales.view(np.uint16)},
    ]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_packing_writes_its_own_units_only(isa, bits) -> None:
    args = good(bits)
    args["packed"][:] = 0x5A
    library().pack(**args)
    units = args["packed"].reshape(4, -1)
    assert (units[[0, 2]] == 0x5A).all() and not (units[1] == 0x5A).any() and not (units[3] == 0x5A).any()


def test_checksums_are_crc32c(isa) -> None:
    """RFC 3720, appendix B.4, and in any pieces."""
    for data, expected in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ):
        assert library().crc32c(np.frombuffer(data, np.uint8)) == expected
    data = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    for cut in (0, 1, 7, 8, 9, 500, 999, 1000):
        assert library().crc32c(data[cut:], library().crc32c(data[:cut])) == library().crc32c(data)
    with pytest.raises(ValueError, match="contiguous"):
        library().crc32c(data[::2])


def test_the_bandwidth_is_one_that_a_machine_can_have(isa) -> None:
    data = np.ones(8 << 20, np.uint8)
    for threads in (1, 2):
        assert 1e8 < library().read_bandwidth(data, threads) < 1e13


def test_kernels_are_chosen_by_name(isa) -> None:
    for name in library().isas:
        with using(name):
            assert library().isa == name and library().lanes == (16 if name == "avx512" else 8)
    with pytest.raises(ValueError, match="instruction set 'sse9': this machine has .*portable"):
        library().use_isa("sse9")
    assert library().isa in library().isas and library().isas[-1] == "portable"


def test_kernels_are_chosen_by_the_environment(isa) -> None:
    code = "from octavo.native.library import library; print(library().isa)"
    for asked, expected in (("portable", "portable"), ("", library().isas[0]), ("sse9", "OCTAVO_ISA is 'sse9'")):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OCTAVO_ISA": asked}, cwd=ROOT,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert expected in done.stdout + done.stderr and (done.returncode == 0) == (asked != "sse9")


def test_a_library_that_cannot_be_used_is_told_of(isa, tmp_path) -> None:
    broken = tmp_path / LIBRARY.name
    broken.write_bytes(b"not a library")
    with pytest.raises(NativeUnavailable, match="cannot be loaded"):
        Library(broken)
    assert isinstance(library_function(), Library)


def test_structures_of_another_size_are_noticed(isa, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "sizeof", lambda kind: 8)
    with pytest.raises(NativeUnavailable, match="built from other sources"):
        Library(LIBRARY)
