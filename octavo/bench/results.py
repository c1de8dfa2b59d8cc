"""From answers to figures: median rates, bytes, shares of the bound, ratios; the one object that --json prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from octavo.bench.bounds import Widths, bound, expected_expert_reads, step_bytes
from octavo.bench.machine import Machine
from octavo.bench.metrics import CHUNK, Metric
from octavo.bench.schedule import Measured, Plan
from octavo.checkpoint.figures import model_figures
from octavo.config import ModelConfig


@dataclass(frozen=True)
class Subject:
    """What was measured: the model's name and shape, the form of its weights, with how many threads; and the shapes of
    the dense models beside it by size, `active` and `total`, measured as parties called `dense_active` and so on."""

    model: str
    config: ModelConfig
    quant: str
    threads: int
    dense: Mapping[str, ModelConfig] = field(default_factory=dict)


def figures(subject: Subject, plan: Plan, machine: Machine, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Everything found as one JSON object; the first of `measured` is octavo, the others are peers and dense models.

    Rates are tokens/s, medians over the rounds, all of them in `samples`. `bytes` is what a step has to move with the
    party's own widths and shape, and `share` the rate divided by the bound that follows (bounds.py). `dense` holds by
    size what `peers` holds by name, and the `parameters` of each. A ratio is our median divided by theirs; `ratio` and
    `errors` call the dense models dense_active and dense_total.
    """
    first, *others = measured
    reads = _expert_reads(subject.config, plan.metrics, measured[first])
    shapes = {f"dense_{size}": config for size, config in subject.dense.items()}
    parties = {
        name: _party(shapes.get(name, subject.config), plan, machine, found, reads) for name, found in measured.items()
    }
    ours = parties[first]
    return {
        "model": subject.model,
        "quant": subject.quant,
        "threads": subject.threads,
        "rounds": plan.rounds,
        "steps": plan.steps,
        "machine": machine.as_dict(),
        "metrics": [metric.name for metric in plan.metrics],
        "ours": ours,
        "peers": {name: parties[name] for name in others if name not in shapes},
        "dense": {
            size: {"parameters": model_figures(config).total_parameters, **parties[f"dense_{size}"]}
            for size, config in subject.dense.items()
        },
        "ratio": {
            name: {metric: ours[metric] / parties[name][metric] for metric in parties[name]["share"]} for name in others
        },
        "errors": {name: measured[name].errors for name in others if measured[name].errors},
    }


def named_parties(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of every party by the name that people read."""
    dense = {f"dense, {size} size": party for size, party in figures["dense"].items()}
    return {"octavo": figures["ours"], **figures["peers"], **dense}


def _expert_reads(config: ModelConfig, metrics: Sequence[Metric], ours: Measured) -> dict[str, float]:
    """Experts read in a step of each metric, as our runner counted them; everyone computes the same tokens."""
    reads = {}
    for metric in metrics:
        counted = [sample["expert_reads"] for sample in ours.samples.get(metric.name, ()) if "expert_reads" in sample]
        count = metric.count if metric.kind == "decode" else min(metric.count, CHUNK)
        reads[metric.name] = fmean(counted) if counted else expected_expert_reads(config, count)
    return reads


def _party(
    config: ModelConfig, plan: Plan, machine: Machine, found: Measured, expert_reads: Mapping[str, float]
) -> dict[str, Any]:
    about = found.about  # a peer may tell only the mean of all its weights
    widths = Widths(about["weight_bytes"], about.get("head_bytes", about["weight_bytes"]), about["key_value_bytes"])
    rates: dict[str, float] = {}
    samples, moved, limits, shares = {}, {}, {}, {}
    for metric in plan.metrics:
        name = metric.name
        if name in found.samples:
            samples[name] = [sample["tokens"] / sample["seconds"] for sample in found.samples[name]]
            rates[name] = median(samples[name])
            moved[name] = round(step_bytes(config, metric, plan.steps, expert_reads[name], widths))
            limits[name] = bound(config, metric, moved[name], machine.read_gb_s, machine.sgemm_gflops)
            shares[name] = rates[name] / limits[name]
    about = {key: value for key, value in found.about.items() if key != "ready"}
    return {**rates, "bytes": moved, "bound": limits, "share": shares, "samples": samples, **about}
