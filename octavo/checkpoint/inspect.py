"""The shape of any model that can be named: a folder (config.json is enough), a GGUF file, a preset, a hub name."""

from dataclasses import dataclass
from pathlib import Path

from octavo.config import PRESETS, Bits, ModelConfig, from_hf, from_params, preset, quantization_bits
from octavo.errors import UserError


@dataclass(frozen=True)
class Inspected:
    """A model's shape; `kind` says where it was found, `weights_checked` whether the tensors' names and shapes were
    there and agreed with it, `bits` how its weights are quantised, if they are."""

    config: ModelConfig
    kind: str
    weights_checked: bool
    bits: Bits | None = None


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
        from octavo.checkpoint.json_files import read_json

        hf = read_json(download_config(spec))
        return Inspected(from_hf(hf, f"{spec}: config.json"), "hub", False, quantization_bits(hf))
    known = ", ".join(PRESETS)
    raise UserError(f"{spec}: no such folder or file, no preset ({known}) and not a hub name (owner/name)")


def _inspect_folder(path: Path) -> Inspected:
    from octavo.checkpoint.consolidated import PARAMS, is_consolidated
    from octavo.checkpoint.folder import weight_files
    from octavo.checkpoint.json_files import read_json
    from octavo.checkpoint.quantized import QuantizedFolder
    from octavo.checkpoint.source import open_source

    if weight_files(path) or is_consolidated(path):
        source = open_source(path)
        return Inspected(source.config, "folder", True, source.bits if isinstance(source, QuantizedFolder) else None)
    if (path / PARAMS).is_file() and not (path / "config.json").exists():
        return Inspected(from_params(read_json(path / PARAMS), str(path / PARAMS)), "folder without weights", False)
    file = path / "config.json"
    hf = read_json(file)
    return Inspected(from_hf(hf, str(file)), "folder without weights", False, quantization_bits(hf))
