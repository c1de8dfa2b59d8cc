"""This repository keeps its house rules (tests/house.py), and each rule is shown to catch what it is there for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parents[1]
Rule = Callable[[Path], list[str]]

# A tree with nothing wrong: the rules must not cry at what is allowed.
GOOD = {
    "octavo/__init__.py": '"""Lazy root."""\n\n__version__ = "0"\n',
    "octavo/errors.py": '"""Errors."""\n\nUserError = ValueError\n',
    "octavo/config.py": '"""Config."""\n\nfrom octavo import __version__\nfrom octavo.errors import UserError\n',
    "octavo/models/__init__.py": '"""Models."""\n\nfrom octavo.models.moe import MoE\nfrom octavo import config\n',
    "octavo/models/moe.py": '''"""Experts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.models import Decoder


class MoE:
    """A layer."""

    def __init__(self, width: int):  # TODO(#12): biases
        self.eval()

    def forward(self, x: int, *rest: int) -> int:
        return x

    def eval(self) -> None:
        """Not the builtin."""

        def inner() -> None:
            pass
''',
    "octavo/cli/__init__.py": '"""Command line."""\n\n\ndef main() -> None:\n    """Print nothing."""\n',
    "README.md": "see https://example.org/wo" + "rk/x and ../wo" + "rk/x\n",
}

DEF = '"""A module."""\n\n\ndef {}:\n    """Something."""\n'
BODY = "    pass\n"
SLOW = '"""Slow."""\n\nimport time\n\n\ndef main() -> None:\n    """Wait."""\n    time.sleep(0.6)\n'

# (rule, path, text): this file, put into the good tree, must be caught by the rule.
PLANTED = [
    (house.room_order, "octavo/models/bad.py", "import octavo.engine.runner"),
    (house.room_order, "octavo/models/bad.py", "from octavo import engine"),
    (house.room_order, "octavo/models/bad.py", "from ..engine import runner"),
    (house.room_order, "octavo/models/bad.py", "from .. import engine"),
    (house.room_order, "octavo/models/bad.py", "import octavo\nload = octavo.load"),
    (house.room_order, "octavo/models/bad.py", "from octavo import load"),
    (house.room_order, "octavo/models/bad.py", "def f():\n    from octavo.engine import runner"),
    (house.room_order, "octavo/models/bad.py", "if TYPE_CHECKING:\n    from octavo.engine import runner"),
    (house.room_order, "octavo/models/bad.py", 'import importlib\nimportlib.import_module("octavo.engine")'),
    (house.room_order, "octavo/serve/bad.py", "from octavo.eval import tasks"),
    (house.room_order, "octavo/errors.py", "from octavo.config import ModelConfig"),
    (house.room_order, "octavo/utils.py", '"""A room nobody knows."""'),
    (house.no_import_cycles, "octavo/models/moe.py", "from octavo.models import MoE"),
    (house.no_import_cycles, "octavo/errors.py", "try:\n    from . import config\nexcept ImportError:\n    pass"),
    (house.light_imports, "octavo/__init__.py", "import fastapi\n__version__ = '0'"),
    (house.light_imports, "octavo/models/__init__.py", "import typer"),
    (house.quick_help, "octavo/cli/__init__.py", SLOW),
    (house.file_length, "tests/test_bad.py", "x = 1\n" * 501),
    (house.file_length, "octavo/native/src/bad.cpp", "int x;\n" * 501),
    (house.line_length, "octavo/bad.py", "#" * 121),
    (house.line_length, "octavo/native/src/bad.inl", "/" * 121),
    (house.function_length, "octavo/bad.py", DEF.format("f() -> None") + BODY * 99),
    (house.function_length, "octavo/bad.py", DEF.format("f() -> None") + BODY * 59),
    (house.module_docstrings, "octavo/bad.py", "x = 1"),
    (house.public_docstrings, "octavo/bad.py", "def f() -> None:\n    pass"),
    (house.public_docstrings, "octavo/bad.py", "class A:\n    pass"),
    (house.public_docstrings, "octavo/bad.py", 'class A:\n    """A."""\n    def f(self) -> None:\n        pass'),
    (house.annotations, "octavo/bad.py", "def f(x) -> None:\n    pass"),
    (house.annotations, "octavo/bad.py", "def f(*x) -> None:\n    pass"),
    (house.annotations, "octavo/bad.py", "def _f(x: int):\n    pass"),
    (house.anchored_todos, "octavo/bad.py", "x = 1  # TODO: more"),
    (house.no_catch_all, "octavo/bad.py", "try:\n    pass\nexcept:\n    pass"),
    (house.no_catch_all, "octavo/bad.py", "from math import *"),
    (house.no_code_from_data, "octavo/bad.py", "import pickle"),
    (house.no_code_from_data, "octavo/bad.py", "def f():\n    from pickle import loads"),
    (house.no_code_from_data, "octavo/bad.py", "import torch\nx = torch.load('a.pt', weights_only=True)"),
    (house.no_code_from_data, "octavo/bad.py", "from torch import load"),
    (house.no_code_from_data, "octavo/bad.py", "f(trust_remote_code=True)"),
    (house.no_code_from_data, "octavo/bad.py", "f(trust_remote_code=flag)"),
    (house.no_code_from_data, "octavo/bad.py", "x = eval('1')"),
    (house.no_code_from_data, "octavo/bad.py", "exec('x = 1')"),
    (house.no_machine_paths, "docs/log.md", "measured in /wo" + "rk/main"),
    (house.no_machine_paths, "x.toml", 'data = "/fa' + 'rm/data"'),
]


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write the files below root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_this_repository(rule: Rule) -> None:
    violations = rule(ROOT)
    assert not violations, "\n".join([str(rule.__doc__), *violations])


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_good_tree_passes(rule: Rule, tmp_path: Path) -> None:
    assert not rule(plant(tmp_path, GOOD))


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED, ids=[rule.__name__ for rule, _, _ in PLANTED])
def test_planted_violation_is_caught(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    assert rule(plant(tmp_path, GOOD | {path: text}))


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(house.RULES)
