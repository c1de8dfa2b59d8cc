"""Download a model (safetensors and JSON only), or just its config, from the Hugging Face hub or HF_ENDPOINT."""

import re
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
    return _snapshot(name, _PATTERNS)


def download_config(name: str) -> Path:
    """The config.json of the model `name` in huggingface_hub's cache; no other file is fetched.

    Raises UserError as `download`, and when the model has none.
    """
    # not hf_hub_download: it tries for 25 seconds where there is no network (huggingface_hub 2.4)
    config = _snapshot(name, ["config.json"]) / "config.json"
    if not config.is_file():
        raise UserError(f"{name}: has no config.json on the hub; octavo reads Hugging Face's layout")
    return config


def _snapshot(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_SKIPPED))
    except GatedRepoError:
        raise UserError(f"{name}: its owners ask for a licence to be accepted first; accept it on the model's page and "
                        "log in with `hf auth login`") from None  # fmt: skip
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such folder here and no such model on the hub (or it is private: "
                        "`hf auth login`)") from None  # fmt: skip
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such folder here, and the hub cannot be reached ({first_line}); check the "
                        "network, or download the model elsewhere and give its folder") from None  # fmt: skip
