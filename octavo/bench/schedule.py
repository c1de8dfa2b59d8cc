"""Who measures when: every metric in rounds, the parties taking turns, one at a time."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from octavo.bench.metrics import Metric
from octavo.bench.party import Party, PartyError, Worker
from octavo.progress import Progress, silent

SETTLE_SECONDS = 0.2  # between parties: the threads of the one before spin for a while before they sleep


@dataclass(frozen=True)
class Plan:
    """What is measured: each metric `rounds` times, decoding over `steps` steps; how long an answer may take, in
    seconds."""

    metrics: Sequence[Metric]
    rounds: int = 3
    steps: int = 64
    timeout: float = 1800.0


@dataclass
class Measured:
    """One party's answers: what it said of itself, its answers by metric's name, and why some are missing."""

    about: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def run(
    parties: Sequence[Party], plan: Plan, say: Callable[[str], None], progress: Progress = silent
) -> dict[str, Measured]:
    """Measure all parties; the first is ours. All are loaded first; each round begins with another.

    A peer that fails at a metric loses it (its other rounds too), one that has crashed or hung all further ones: see
    `Measured.errors`. Raises PartyError when a party cannot load, or ours fails at all.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        found: dict[str, Measured] = {}
        for party in parties:
            say(f"loading {party.name}")
            worker = stack.enter_context(Worker(party))
            workers[party.name], found[party.name] = worker, Measured(worker.ready(plan.timeout))
        turns, last = _turns(parties, plan), parties[-1]
        for done, (party, metric) in enumerate(turns):
            progress("measuring", done, len(turns))
            measured = found[party.name]
            if metric.name in measured.errors:
                continue
            if party is not last:
                time.sleep(SETTLE_SECONDS)
                last = party
            try:
                answer = workers[party.name].ask(metric.request(plan.steps), plan.timeout)
                measured.samples.setdefault(metric.name, []).append(answer)
            except PartyError as error:
                if party is parties[0]:
                    raise
                _note_failure(measured, error, metric, party, plan)
        progress("measuring", len(turns), len(turns))
    return found


def _turns(parties: Sequence[Party], plan: Plan) -> list[tuple[Party, Metric]]:
    return [
        (party, metric)
        for metric in plan.metrics
        for round_ in range(plan.rounds)
        for party in [*parties[round_ % len(parties) :], *parties[: round_ % len(parties)]]
        if party.measures(metric)
    ]


def _note_failure(measured: Measured, error: PartyError, metric: Metric, party: Party, plan: Plan) -> None:
    measured.samples.pop(metric.name, None)
    measured.errors[metric.name] = str(error)
    if error.gone:
        for other in plan.metrics:
            if party.measures(other) and other.name not in measured.samples:
                measured.errors.setdefault(other.name, f"{party.name}: its process ended at {metric.name}")
