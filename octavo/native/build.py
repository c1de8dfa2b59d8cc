"""Compile the CPU core: `python -m octavo.native.build`, and what `pip install` runs (hatch_build.py).

Standard library only, and imports nothing of octavo: it runs before octavo is installed. Each instruction set's kernels
are a file of their own with flags of their own, and the library picks at run time, so one build serves every machine.
"""

import hashlib
import os
import platform
import shlex
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

# -ffp-contract=off: a compiler that fuses a * b + c here and not there would change results from row to row.
# -Wno-psabi: how vectors are passed between files does not matter, none leaves its own.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")), "-mprefer-vector-width=512"]
FLAGS_OF = {"isa_avx2.cpp": AVX2, "isa_avx512.cpp": AVX512} if platform.machine() in ("x86_64", "AMD64") else {}

# Its own copy of the C++ library, none of it exported: the machine that runs this may have another one, or none, and
# torch brings one too. What a linker refuses it does without: zig's the second part, Apple's both.
OWN_RUNTIME = ["-static-libstdc++", "-static-libgcc", "-s"]
LINKS = ([*OWN_RUNTIME, "-Wl,--exclude-libs,ALL"], OWN_RUNTIME, [])

REMEDY = "install g++ or clang++, or `pip install ziglang`, then run `python -m octavo.native.build`"


class BuildError(Exception):
    """The library could not be made; the message says in one line why."""


def source_hash() -> str:
    """Tells one state of the sources, for this kind of machine, from another; the library carries that of its own."""
    digest = hashlib.sha256(" ".join([sys.platform, platform.machine(), *FLAGS, *AVX512]).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):  # not what an editor leaves there
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(library: Path = LIBRARY) -> bool:
    """Is there a library, and was it built from the sources as they are?"""
    return library.is_file() and source_hash().encode() in library.read_bytes()


def find_compiler() -> list[str] | None:
    """$CXX, the system's C++ compiler, or the one in the `ziglang` wheel; None if there is none."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    installed = [[found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))]
    # baseline: left to itself, zig compiles for the very processor that it runs on
    for command in (*installed, [sys.executable, "-m", "ziglang", "c++", "-mcpu=baseline"]):
        # macOS has a c++ that only says that the compiler is not installed
        if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0:
            return command
    return None


def build(target: Path = LIBRARY, extra: Sequence[str] = ()) -> Path:
    """Compile all sources, with `extra` flags, into the shared library `target`, whole or not at all.

    Raises BuildError.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(f"no C++ compiler: {REMEDY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
            _compile([*compiler, *extra], Path(work), Path(work) / target.name)
            (Path(work) / target.name).replace(target)
    except OSError as error:
        raise BuildError(f"cannot write to {target.parent}: {error.strerror or error}") from None
    return target


def _compile(compiler: Sequence[str], work: Path, linked: Path) -> None:
    """The library `linked` of all sources; everything else that comes into being lies in `work`."""
    # LC_ALL: the first error is found by that word. zig would leave 100 MB of compiled C++ library in the home folder.
    caches = {name: str(work) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    environment = caches | os.environ | {"LC_ALL": "C"}
    hashed = f'-DOCTAVO_SOURCE_HASH="{source_hash()}"'

    def compiled(source: Path) -> str:
        made = str(work / f"{source.stem}.o")
        flags = [*FLAGS, *FLAGS_OF.get(source.name, []), hashed]
        _run([*compiler, *flags, "-c", str(source), "-o", made], environment)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        objects = list(workers.map(compiled, sorted(SOURCES.glob("*.cpp"))))
    for options in LINKS:
        try:
            return _run([*compiler, "-shared", "-pthread", *objects, *options, "-o", str(linked)], environment)
        except BuildError:
            if not options:
                raise


def platform_tag() -> str:
    """The wheel's platform: the library runs on this system and machine only, with any Python."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    name = "ziglang" if "ziglang" in command else command[0]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{name} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{name} failed: {lines[0] if lines else f'exit status {done.returncode}'}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"octavo: {error}")
