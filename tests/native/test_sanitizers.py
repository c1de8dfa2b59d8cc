"""The core by itself under sanitizers: a stand-alone program (driver.cpp) of all kernels and of whole steps."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo.native import build
from octavo.native.library import NativeUnavailable, library

DRIVER = Path(__file__).with_name("driver.cpp")
# -O1: at -O0 the vector code takes minutes, and what -O3 leaves out cannot be checked
SANITIZERS = {
    "memory": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=800, env={**os.environ, "LC_ALL": "C"})


def linked(folder: Path, sources: list[Path], sanitizer: list[str]) -> Path:
    """A program of these sources; skips the test where there is no compiler, or not with this sanitizer."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")

    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        flags = [*build.FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", f"-I{build.SOURCES}"]
        done = run(*compiler, *flags, *build.FLAGS_OF.get(source.name, []), *sanitizer, "-c", source, "-o", out)
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(2) as workers:
        objects = list(workers.map(compiled, sources))
    done = run(*compiler, "-pthread", *sanitizer, *objects, "-o", folder / "program")
    assert done.returncode == 0, done.stderr
    return folder / "program"


def program(folder: Path, name: str, main: str, *more: Path) -> Path:
    (folder / f"{name}.cpp").write_text(main)
    return linked(folder, [folder / f"{name}.cpp", *more], SANITIZERS[name])


FAULTS = {  # what each sanitizer is there for; volatile, so that the compiler does not see it coming
    "memory": "int main() { volatile int at = 4; int *block = new int[4](); return block[at]; }",
    "threads": "#include <thread>\nint x = 0;\n"
    "int main() { std::thread other([] { x++; }); x++; other.join(); return 0; }",
}


@pytest.mark.parametrize("name", SANITIZERS)
def test_the_core_runs_clean(name, tmp_path) -> None:
    try:
        (tmp_path / "none").mkdir()
        trial = run(program(tmp_path / "none", name, "int main() {}"))
    except AssertionError as error:
        pytest.skip(f"the compiler has no such sanitizer: {error}")
    if trial.returncode:
        pytest.skip(f"the sanitizer does not run here: {trial.stderr.strip()[-200:]}")
    (tmp_path / "fault").mkdir()
    fault = run(program(tmp_path / "fault", name, FAULTS[name]))
    assert fault.returncode and ("Sanitizer" in fault.stderr or "runtime error" in fault.stderr), (
        "it does not see what it is there for"
    )
    done = run(linked(tmp_path, [*sorted(build.SOURCES.glob("*.cpp")), DRIVER], SANITIZERS[name]))
    assert done.returncode == 0 and done.stderr == "", done.stderr[-4000:]
    try:
        expected = list(library().isas)
    except NativeUnavailable:
        expected = done.stdout.split()
    assert done.stdout.split() == expected and expected[-1] == "portable"
