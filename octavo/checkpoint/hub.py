"""Download a model (safetensors and JSON only) or just its config from the Hugging Face hub, or the mirror HF_ENDPOINT
names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import UserError

_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "tokenizer.model",
    "*.jinja",
    "LICENSE*",
    "README.md",
]
_SKIPPED = ["consolidated*", "original/*", "*/*"]  # second copies of the same weights in another layout


def is_hub_name(spec: str) -> bool:
    """Whether `spec` has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", spec) is not None and not spec.startswith((".", "/"))


def download(name: str) -> Path:
    """Folder of the model `name` in huggingface_hub's cache, downloaded or completed as needed.

    Raises UserError when it does not exist, needs a licence accepted, or there is no network.
    """
    from huggingface_hub import snapshot_download

    with _one_clear_line(name):
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, ignore_patterns=_SKIPPED))


def download_config(name: str) -> Path:
    """The config.json of the model `name` in huggingface_hub's cache, and no other file.

    Raises UserError as `download`, and when the model has no config.json.
    """
    from huggingface_hub import hf_hub_download

    with _one_clear_line(name):
        return Path(hf_hub_download(name, "config.json"))


@contextmanager
def _one_clear_line(name: str) -> Iterator[None]:
    """What can go wrong with a hub, as UserError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise UserError(f"{name}: its owners ask for a licence to be accepted first; accept it on the model's page and "
                        "log in with `hf auth login`") from None  # fmt: skip
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such folder here and no such model on the hub (or it is private: "
                        "`hf auth login`)") from None  # fmt: skip
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        # without a network the file is missing too, from the cache: that is another EntryNotFoundError
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(f"{name}: has no config.json on the hub; octavo reads Hugging Face's layout") from None
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such folder here, and the hub cannot be reached ({first_line}); check the "
                        "network, or download the model elsewhere and give its folder") from None  # fmt: skip
