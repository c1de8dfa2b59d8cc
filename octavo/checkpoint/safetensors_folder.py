"""The part of a folder `Source` that is the same for every naming of its tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from octavo.checkpoint.checksums import CHECKSUMS, check_sums
from octavo.checkpoint.names import Index
from octavo.checkpoint.shards import DTYPES, StoredTensor, read_part
from octavo.config import ModelConfig
from octavo.errors import UserError
from octavo.progress import Progress, silent

SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor lies: a stored tensor and the part of it, which has `shape` there.

    whole: the stored tensor's shape, where the index fits into others too. heads: the number of heads in which
    rotary's pairs are interleaved. transposed: the part is the transpose of what it should be.
    """

    stored: str
    shape: tuple[int, ...]
    index: Index = ()
    whole: tuple[int, ...] | None = None
    heads: int | None = None
    transposed: bool = False


class SafetensorsFolder:
    """A folder as a `Source`, given where each canonical tensor lies. Subclasses say what the layout calls things."""

    config_name: ClassVar[str]  # the file that describes the model
    tied_field: ClassVar[str]  # its field for tied embeddings
    head_name: ClassVar[str]  # the output matrix

    def __init__(
        self,
        path: Path,
        label: str | None,
        config: ModelConfig,
        files: Mapping[str, StoredTensor],
        places: Mapping[str, Place],
        ignored: Collection[str] = (),
    ) -> None:
        """`files`: every stored tensor; `places`: where each canonical one lies; `ignored`: stored ones to pass over.

        Raises UserError for a tensor that is missing, misshapen or left over, and for a head that differs from the
        embeddings it is tied to.
        """
        self.path, self.label, self.config = path, label or str(path), config
        self._files, self._places = files, places
        for name, place in places.items():
            self._check_place(name, place)
        self._check_left_over({*ignored, *({self.head_name} if config.tie_embeddings else ())})
        self._check_tied_head()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every stored tensor exactly; files may mix bf16 matrices and fp32 norms."""
        stored = {DTYPES[self._files[place.stored].dtype] for place in self._places.values()}
        return reduce(torch.promote_types, stored)

    @property
    def licence(self) -> str | None:
        """The licence its model card's front matter states, if any."""
        card = self.path / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        found = re.match(r"---\n(?:.*\n)*?license: *[\"']?([\w.-]+)", text)
        return found.group(1) if found else None

    def check(self, progress: Progress = silent) -> None:
        """Compare every file with SHA256SUMS if the folder has one; raises UserError on a difference."""
        if (self.path / CHECKSUMS).is_file():
            check_sums(self.path, progress)

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, in the file's precision, with memory of its own."""
        place = self._places[name]
        part = read_part(self._files[place.stored].path, place.stored, place.index)
        if place.heads is not None:
            part = pairs_to_halves(part, place.heads)
        return part.T.contiguous() if place.transposed else part

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer, chat template and licence files that are there, by file name."""
        found = [self.path / name for name in SIDE_FILES if (self.path / name).is_file()]
        try:
            return {path.name: path.read_bytes() for path in found}
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None

    def _check_place(self, name: str, place: Place) -> None:
        if place.stored not in self._files:
            raise UserError(
                f"{self.label}: tensor {place.stored} is missing; {self.config_name} and weights do not belong together"
            )
        path, shape, _ = self._files[place.stored]
        expected = place.whole or place.shape
        found = shape if place.whole else _part_shape(shape, place.index)
        if found != expected:
            implied = f"{self.config_name} implies {list(expected)} for {name}"
            raise UserError(f"{path}: {place.stored} has shape {list(shape)}, {implied}")

    def _check_left_over(self, ignored: Collection[str]) -> None:
        known = {place.stored for place in self._places.values()}.union(ignored)
        left_over = [name for name in self._files if name not in known]
        if left_over:
            shown = ", ".join(left_over[:3]) + (", …" if len(left_over) > 3 else "")
            raise UserError(f"{self.label}: {len(left_over)} tensors belong to nothing in {self.config_name}: {shown}")

    def _check_tied_head(self) -> None:
        """A tied config beside a head of its own means one thing to some readers and another to others."""
        embedding, head = "model.embed_tokens.weight", self.head_name
        if not (self.config.tie_embeddings and head in self._files):
            return
        if not torch.equal(read_part(self._files[head].path, head), self.tensor(embedding)):
            raise UserError(
                f"{self.label}: {self.config_name} ties the embeddings, but {head} is stored and differs from "
                f"{self._places[embedding].stored}: set {self.tied_field} to false, or remove the head"
            )


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Query or key rows [heads * D, H], reordered within each head: rotary's pairs (2i, 2i+1) become (i, i + D/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _part_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...] | None:
    """Shape of `tensor[index]`, None when the index does not fit."""
    try:
        return tuple(torch.empty(shape, device="meta")[index].shape)
    except IndexError:
        return None
