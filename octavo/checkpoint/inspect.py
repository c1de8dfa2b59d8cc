"""The shape of any model that can be named: a folder (config.json is enough), a GGUF file, a preset, a hub name."""

from dataclasses import dataclass
from pathlib import Path

from octavo.config import PRESETS, ModelConfig, from_hf, from_params, preset
from octavo.errors import UserError


@dataclass(frozen=True)
class Inspected:
    """A model's shape; `kind` says where it was found, `weights_checked` whether the tensors' names and shapes were
    there and agreed with it."""

    config: ModelConfig
    kind: str
    weights_checked: bool


def inspect(spec: str) -> Inspected:
    """The shape behind a folder, a .gguf file, a preset or a hub name: what lies on the disk comes first.

    Of weights only the headers are read (and a head stored beside a config that ties it, see FolderSource); from the
    hub only config.json is fetched. Raises UserError when there is nothing of the kind or it cannot be used.
    """
    # imported where they are needed: these bring torch or huggingface_hub, and a preset waits for neither
    path = Path(spec).expanduser()
    if path.is_dir():
        return _inspect_folder(path)
    if path.is_file():
        from octavo.checkpoint.gguf_source import GGUFSource

        return Inspected(GGUFSource(path).config, "GGUF file", True)
    if spec in PRESETS:
        return Inspected(preset(spec), "preset", False)

    from octavo.checkpoint.hub import download_config, is_hub_name

    if is_hub_name(spec):
        from octavo.checkpoint.shards import read_json

        return Inspected(from_hf(read_json(download_config(spec)), f"{spec}: config.json"), "hub", False)
    known = ", ".join(PRESETS)
    raise UserError(f"{spec}: no such folder or file, no preset ({known}) and not a hub name (owner/name)")


def _inspect_folder(path: Path) -> Inspected:
    from octavo.checkpoint.consolidated import PARAMS, is_consolidated
    from octavo.checkpoint.folder import weight_files
    from octavo.checkpoint.shards import read_json
    from octavo.checkpoint.source import open_source

    if weight_files(path) or is_consolidated(path):
        return Inspected(open_source(path).config, "folder", True)
    mistral = (path / PARAMS).is_file() and not (path / "config.json").exists()
    file, read = (path / PARAMS, from_params) if mistral else (path / "config.json", from_hf)
    return Inspected(read(read_json(file), str(file)), "folder without weights", False)
