"""Compile the CPU core: `python -m octavo.native.build`, and what `pip install` runs (hatch_build.py).

Standard library only, and imports nothing of octavo: it runs before octavo is installed. Each instruction set's kernels
are a file of their own with flags of their own, and the library picks at run time, so one build serves every machine.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY = Path(__file__).parent / "lib" / f"octavo_core{'.dylib' if sys.platform == 'darwin' else '.so'}"

# -ffp-contract=off: a compiler that fuses a * b + c here and not there would change results from row to row
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")), "-mprefer-vector-width=512"]
FLAGS_OF = {"isa_avx2.cpp": AVX2, "isa_avx512.cpp": AVX512} if platform.machine() in ("x86_64", "AMD64") else {}


class BuildError(Exception):
    """No compiler, or it failed; the message says which."""


def source_hash() -> str:
    """Tells one state of the sources from another; the library carries that of its own."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """$CXX, the system's C++ compiler, or the one in the `ziglang` wheel; None if there is none."""
    if named := os.environ.get("CXX"):
        return named.split()
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    here = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    return [sys.executable, "-m", "ziglang", "c++"] if here.returncode == 0 else None


def build(target: Path = LIBRARY, extra: Sequence[str] = ()) -> Path:
    """Compile all sources into the shared library `target`, whole or not at all. Raises BuildError."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler: install g++ or clang++, or `pip install ziglang`")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:

        def compiled(source: Path) -> str:
            made = str(Path(work) / f"{source.stem}.o")
            hashed = f'-DOCTAVO_SOURCE_HASH="{source_hash()}"'
            _run([*compiler, *FLAGS, *FLAGS_OF.get(source.name, []), *extra, hashed, "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as workers:
            objects = list(workers.map(compiled, sorted(SOURCES.glob("*.cpp"))))
        linked = Path(work) / target.name
        # its own copy of the C++ library: the machine that runs it may have another one, or none
        own = ["-static-libstdc++", "-static-libgcc"] if "g++" in Path(compiler[0]).name else []
        try:
            _run([*compiler, "-shared", "-pthread", *extra, *objects, *own, "-o", str(linked)])
        except BuildError:
            _run([*compiler, "-shared", "-pthread", *extra, *objects, "-o", str(linked)])
        linked.replace(target)
    return target


def platform_tag() -> str:
    """The wheel's platform: the library runs on this system and machine only, with any Python."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else f'exit status {done.returncode}'}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"octavo: {error}")
