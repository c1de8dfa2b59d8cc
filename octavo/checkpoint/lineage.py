"""Is a mixture made from a given parent, and how? Its experts against the parent's feed-forwards, tensor by tensor.

The comparison by which Mixtral's experts were traced to Mistral-7B (for one, ggml-org/llama.cpp issue 4611), with a
search for hidden units that were moved.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import fmean
from typing import Any

from torch import Tensor

from octavo.checkpoint.card import percent
from octavo.checkpoint.convert import display_name
from octavo.checkpoint.names import DENSE_NAMES, tensor_table
from octavo.checkpoint.source import Source
from octavo.checkpoint.unit_match import PARTS, ExpertMatch, FeedForward, match, pearson, row_sums
from octavo.config import ModelConfig
from octavo.errors import UsageError, UserError
from octavo.progress import Progress, silent

_UNCHANGED = 0.9999  # likeness from which on experts are called untrained; rounding to bf16 leaves 0.999998
_STRIKING = 0.2  # correlation of a whole matrix that is worth a word where no hidden unit is found


@dataclass(frozen=True)
class LayerLineage:
    """One layer: its experts (one if it is dense) and the correlation of each tensor that both models have."""

    layer: int
    experts: tuple[ExpertMatch, ...]
    shared: dict[str, float]


@dataclass(frozen=True)
class Lineage:
    """What `compare_lineage` found. shared: embeddings, final norm and head; not_compared: tensors of one
    side only, or of other shapes."""

    parent: str
    child: str
    layers: tuple[LayerLineage, ...]
    shared: dict[str, float]
    not_compared: tuple[str, ...]

    @property
    def experts(self) -> list[ExpertMatch]:
        """The experts of all layers."""
        return [expert for layer in self.layers for expert in layer.experts]

    @property
    def kinds(self) -> dict[str, int]:
        """How many experts are of each kind, the most frequent first."""
        return dict(Counter(expert.kind for expert in self.experts).most_common())

    @property
    def verdict(self) -> str:
        """One sentence."""
        kinds = self.kinds
        if len(kinds) > 1:
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            return f"the {len(self.experts)} experts differ in kind: {counts}"
        kind, experts = next(iter(kinds)), self.experts
        if kind == "unrelated":
            means = {part: fmean(expert.correlation[part] for expert in experts) for part in PARTS}
            alike = ", ".join(f"{part} {mean:.2f}" for part, mean in means.items() if mean > _STRIKING)
            though = f", though some matrices are ({alike})" if alike else ""
            return f"no expert is related to the parent's feed-forward{though}"
        share = fmean(expert.matched for expert in experts)
        scale = fmean(expert.scale["w2"] for expert in experts if expert.scale)
        part = Fraction(experts[0].units, experts[0].parent_units)
        sentence = {
            "copy": "every expert is a copy of the parent's feed-forward",
            "permuted": "every expert is a copy of the parent's feed-forward with its hidden units permuted",
            "split": f"every expert is {part} of the parent's feed-forward, with w2 times {scale:.3g}",
            "drop": f"every expert has {percent(share)} of the parent's hidden units, the others are new",
        }[kind]
        if kind != "drop" and share < 1:
            sentence += f"; {percent(1 - share)} of its units are not found there"
        likeness = fmean(expert.likeness for expert in experts)
        if likeness < _UNCHANGED:
            sentence += f"; trained on since (likeness of units {likeness:.2f})"
        return sentence

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, "kinds": self.kinds, **asdict(self)}


def compare_lineage(parent: Source, child: Source, progress: Progress = silent) -> Lineage:
    """Compare each of the child's experts with the parent's feed-forward, and all other tensors one to one.

    Between two mixtures, expert e is compared with expert e; a dense child with each of the parent's experts. In
    memory are one feed-forward of either side and blocks. Raises UsageError for models whose shapes do not allow it,
    UserError for weights that are not finite.
    """
    _check_comparable(parent, child)
    theirs, ours = tensor_table(parent.config), tensor_table(child.config)
    common = [
        name for name in ours if name in theirs and not _in_expert(name) and ours[name].shape == theirs[name].shape
    ]
    shared: dict[int, dict[str, float]] = {layer: {} for layer in range(-1, child.config.num_layers)}
    for done, name in enumerate(common, start=1):
        layer, short = _place(name)
        shared[layer][short] = _correlation(name, parent, child)
        progress("shared tensors", done, len(common))
    lost = sorted(name for name in (theirs.keys() | ours.keys()) - set(common) if not _in_expert(name))
    layers = []
    for layer in range(child.config.num_layers):
        layers.append(LayerLineage(layer, _experts(parent, child, layer), shared[layer]))
        progress("comparing experts", layer + 1, child.config.num_layers)
    return Lineage(display_name(parent), display_name(child), tuple(layers), shared[-1], tuple(lost))


def _check_comparable(parent: Source, child: Source) -> None:
    a, b = parent.config, child.config
    fields = {
        "vocab_size": "vocabulary",
        "num_layers": "number of layers",
        "hidden_size": "width",
        "num_heads": "number of heads",
        "num_kv_heads": "number of key heads",
        "head_dim": "head width",
    }
    for field, what in fields.items():
        if getattr(a, field) != getattr(b, field):
            raise UsageError(f"{parent.label} and {child.label} differ in {what} ({getattr(a, field)} and "
                             f"{getattr(b, field)}): tensors of different shapes cannot be compared")  # fmt: skip
    if b.intermediate_size > a.intermediate_size:
        raise UsageError(f"{child.label}: its feed-forwards are {b.intermediate_size} wide and {parent.label}'s "
                         f"{a.intermediate_size}; give the wider model first")  # fmt: skip
    for layer in range(a.num_layers):
        n, m = _count(a, layer), _count(b, layer)
        if n and m and n != m:
            raise UsageError(f"{parent.label} has {n} experts and {child.label} {m}: only mixtures of as many experts "
                             "can be compared, expert against expert")  # fmt: skip


def _experts(parent: Source, child: Source, layer: int) -> tuple[ExpertMatch, ...]:
    """All pairs of one layer; a dense side is read once for all of them."""
    n, m = _count(parent.config, layer), _count(child.config, layer)
    theirs, ours = (
        None if count else _feed_forward(source, layer, None) for source, count in ((parent, n), (child, m))
    )
    matches = []
    for expert in range(max(n, m, 1)):
        try:
            matches.append(
                match(ours or _feed_forward(child, layer, expert), theirs or _feed_forward(parent, layer, expert))
            )
        except UserError as error:
            raise UserError(f"layer {layer}, expert {expert} of {parent.label} or {child.label}: {error}") from None
    return tuple(matches)


def _count(config: ModelConfig, layer: int) -> int:
    """Experts in a layer, 0 if it is dense."""
    return config.num_experts if config.layers[layer].mlp == "experts" else 0


def _feed_forward(source: Source, layer: int, expert: int | None) -> FeedForward:
    prefix = f"model.layers.{layer}."
    names: Mapping[str, str] = {part: f"{prefix}mlp.{dense}.weight" for part, dense in DENSE_NAMES.items()}
    if expert is not None:
        names = {part: f"{prefix}block_sparse_moe.experts.{expert}.{part}.weight" for part in PARTS}
    w1, w3, w2 = (source.tensor(names[part]) for part in PARTS)
    return FeedForward({"w1": w1, "w3": w3, "w2": w2.T.contiguous()})


def _in_expert(name: str) -> bool:
    return ".mlp." in name or ".experts." in name


def _place(name: str) -> tuple[int, str]:
    """Layer (-1 outside) and the name within it, without `.weight`."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if not name.startswith("layers."):
        return -1, name
    _, layer, rest = name.split(".", 2)
    return int(layer), rest


def _correlation(name: str, parent: Source, child: Source) -> float:
    ours, theirs = (_rows(source.tensor(name)) for source in (child, parent))
    try:
        return pearson(row_sums(ours, theirs))
    except UserError as error:
        raise UserError(f"{name} of {parent.label} or {child.label}: {error}") from None


def _rows(tensor: Tensor) -> Tensor:
    # a vector as rows of one entry: it is then summed in fp64, which norms of nearly equal entries need
    return tensor[:, None] if tensor.dim() == 1 else tensor
