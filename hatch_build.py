"""Hatchling's hook: builds the CPU core (octavo/native) into the wheel, and never fails an install for lack of it.

A machine without a C++ compiler gets the one in the `ziglang` wheel, for the build only. If there is no core in the
end, octavo says so in one line when it runs, and takes the torch path. OCTAVO_REQUIRE_NATIVE=1 lets the build fail
then; OCTAVO_REQUIRE_NATIVE=0 has no compiler fetched.
"""

import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Asking for a package that has no wheel for this machine would end the install.
ZIGLANG_MACHINES = {"linux": ("x86_64", "aarch64"), "darwin": ("x86_64", "arm64")}


class NativeBuildHook(BuildHookInterface):
    """Compiles before a wheel or an editable install is made, unless a library of these very sources is there."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beyond hatchling: a compiler, where the machine has none."""
        native = load_build(self.root)
        fetched = platform.machine() in ZIGLANG_MACHINES.get(sys.platform, ()) and required() != "0"
        return ["ziglang>=0.13"] if fetched and not native.is_current() and native.find_compiler() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the library and pack it; `version` is "standard" for a wheel, "editable" for `pip install -e`."""
        native = load_build(self.root)
        try:
            if not native.is_current():
                native.build()
        except native.BuildError as error:
            if required() == "1":
                raise
            self.app.display_warning(f"octavo is built without its CPU core: {error}")
            return
        if version == "standard":
            build_data["force_include"][str(native.LIBRARY)] = str(native.LIBRARY.relative_to(self.root))
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{native.platform_tag()}"


def required() -> str:
    """$OCTAVO_REQUIRE_NATIVE."""
    return os.environ.get("OCTAVO_REQUIRE_NATIVE", "")


def load_build(root: str) -> ModuleType:
    """octavo/native/build.py by its path: octavo itself cannot be imported before its dependencies are installed."""
    spec = importlib.util.spec_from_file_location("octavo_native_build", Path(root, "octavo/native/build.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
