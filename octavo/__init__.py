"""octavo: the open stack for sparse mixture-of-experts language models.

    import octavo

    with octavo.Engine("path/or/hub-name") as engine:
        for done in engine.generate(["The capital of France is"], octavo.SamplingParams(max_new_tokens=8)):
            print(done.text)

    model, tokenizer = octavo.load("path/or/hub-name")  # the decoder in torch
    print(octavo.generate(model, tokenizer, "The capital of France is", max_new_tokens=8))

The names below are imported when first used, so that `import octavo` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.checkpoint.load import load
    from octavo.config import EngineOptions, Grammar, ModelConfig, SamplingParams
    from octavo.engine.engine import Engine, generate
    from octavo.errors import UsageError, UserError
    from octavo.models.decoder import Decoder

__version__ = "0.1.0"
__all__ = [
    "Decoder",
    "Engine",
    "EngineOptions",
    "Grammar",
    "ModelConfig",
    "SamplingParams",
    "UsageError",
    "UserError",
    "generate",
    "load",
]

_HOMES = {
    "Decoder": "octavo.models.decoder",
    "Engine": "octavo.engine.engine",
    "EngineOptions": "octavo.config",
    "Grammar": "octavo.config",
    "ModelConfig": "octavo.config",
    "SamplingParams": "octavo.config",
    "UsageError": "octavo.errors",
    "UserError": "octavo.errors",
    "generate": "octavo.engine.engine",
    "load": "octavo.checkpoint.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
