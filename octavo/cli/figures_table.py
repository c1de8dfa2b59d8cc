"""A model's figures as plain text of at most 80 columns, for a terminal, a log or a paper's appendix."""

from itertools import groupby
from textwrap import wrap

from octavo.checkpoint.figures import LayerFigures, ModelFigures
from octavo.config import ModelConfig

WIDTH = 80
_NOTE = (
    "Every tensor counts, routers and norms too, a tied head once. Active is all but the experts that a token is not "
    "sent to."
)


def figures_table(figures: ModelFigures, model: str, kind: str, weights_checked: bool) -> str:
    """The text that `octavo inspect` prints: a block of facts, then the layers in groups of equal ones, summed up."""
    facts = _facts(figures, weights_checked)
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items()]
    return "\n".join([f"{model} ({kind})", "", *lines, "", *_ledger(figures), "", *wrap(_NOTE, WIDTH)])


def _facts(figures: ModelFigures, weights_checked: bool) -> dict[str, str]:
    """What the model is and needs, by name; a line that says nothing for this model is left out."""
    config = figures.config
    active, total = figures.active_parameters, figures.total_parameters
    share = "" if active == total else f" ({active / total:.1%})"
    without = amount(active - figures.embedding_parameters)
    checked = "; stored names and shapes agree" if weights_checked else ""
    facts = {
        "family": config.family,
        "parameters": amount(total),
        "active per token": f"{amount(active)}{share}; {without} without embedding and head",
        "embedding and head": amount(figures.embedding_parameters) + (" (tied)" if config.tie_embeddings else ""),
        "weights": f"{memory(figures.weight_bytes)} {_storage(figures.bits)}{checked}",
    }
    if config.softmax_layers:
        facts["keys and values"] = f"{figures.kv_bytes_per_token:,} bytes per token held (bf16)"
        place = "in the window" if config.sliding_window else "at full context"
        facts[f"  {place}"] = f"{memory(figures.kv_bytes_at_full_context)} per sequence"
    if config.lightning_layers:
        facts["recurrent state"] = f"{memory(figures.state_bytes_per_sequence)} per sequence of any length (fp32)"
    facts["context"] = f"{config.max_positions:,} tokens"
    if config.sliding_window:
        facts["attention window"] = f"the last {config.sliding_window:,} tokens"
    return facts | {"vocabulary": f"{config.vocab_size:,} tokens"} | _widths(config)


def _storage(bits: int | None) -> str:
    return f"as stored (int{bits})" if bits else "in bf16"


def _widths(config: ModelConfig) -> dict[str, str]:
    rotated = f" ({config.rope.dim} rotated)" if config.rope.dim != config.head_dim else ""
    where = " (softmax)" if config.lightning_layers else ""
    heads = f"{config.num_heads}, {config.head_dim} wide{rotated}; {config.num_kv_heads} for keys and values{where}"
    widths = {"hidden size": f"{config.hidden_size:,}", "attention heads": heads}
    if any(layer.mlp == "dense" for layer in config.layers):
        widths["feed-forward"] = f"{config.intermediate_size:,} wide"
    if config.has_experts:
        shared = f"; a shared one {config.shared_intermediate_size:,} wide" if config.shared_intermediate_size else ""
        widths["experts"] = f"{config.num_experts}, {config.top_k} chosen; {config.intermediate_size:,} wide{shared}"
    return widths


def _ledger(figures: ModelFigures) -> list[str]:
    """Rows that add up: groups of equal layers, then what stands outside the layers."""
    config = figures.config
    lines = [
        f"{'':<40}{'one layer':>20}{'all of them':>20}",
        f"{'layers':<40}{'total':>10}{'active':>10}{'total':>10}{'active':>10}",
    ]
    for group in dict.fromkeys(figures.layers):
        places = [index for index, layer in enumerate(figures.layers) if layer == group]
        each = (group.parameters, group.active_parameters)
        in_all = tuple(len(places) * figure for figure in each)
        lines.append(_row(_describe(group, config, len(places)), each, in_all))
        lines += wrap(ranges(places), WIDTH, initial_indent="    ", subsequent_indent="    ")
    tied = "embedding, also the head" if config.tie_embeddings else "embedding and head"
    for name, parameters in ((tied, figures.embedding_parameters), ("final norm", figures.final_norm_parameters)):
        lines.append(_row(name, (), (parameters, parameters)))
    return [*lines, _row("model", (), (figures.total_parameters, figures.active_parameters))]


def _describe(layer: LayerFigures, config: ModelConfig, places: int) -> str:
    experts = f"{config.num_experts} experts ({config.top_k} chosen)"
    return f"{places} {layer.spec.attention}, {experts if layer.spec.mlp == 'experts' else 'dense'}"


def _row(name: str, each: tuple[int, ...], in_all: tuple[int, ...]) -> str:
    first, second = map(amount, each) if each else ("", "")
    third, fourth = map(amount, in_all)
    return f"{name:<40}{first:>10}{second:>10}{third:>10}{fourth:>10}"


def amount(number: int) -> str:
    """A number of parameters as 456.09 B, 134.52 M, 6.14 K or 331."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def memory(number: int) -> str:
    """A number of bytes in binary units: 280 MiB, 849.5 GiB."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**power:
            return f"{number / 2**power:.4g} {unit}"
    return f"{number} bytes"


def ranges(numbers: list[int]) -> str:
    """Rising numbers with runs drawn together: 0-6, 8-14, 16."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
