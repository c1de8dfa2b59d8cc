"""What stands before the routes, from the outside in: notes of every request, the guard, the drain."""

from collections.abc import Mapping

from fastapi import FastAPI

from octavo.engine.engine import Engine
from octavo.serve.access import AccessLog
from octavo.serve.guard import PROBES, Guard
from octavo.serve.lifecycle import Drain, Lifecycle
from octavo.serve.metrics import Metrics
from octavo.serve.options import ServeOptions
from octavo.serve.page import PAGE_PATHS
from octavo.serve.status import STATUS_PATHS, add_status


def add_gates(app: FastAPI, engines: Mapping[str, Engine], options: ServeOptions) -> Metrics:
    """Put the middlewares before an application, and app.state.lifecycle and the routes that say how it is into it.
    Returns the metrics, for the routes that generate."""
    lifecycle, metrics = Lifecycle(), Metrics(engines)
    app.state.lifecycle = lifecycle
    # the one that is added last is the outermost
    app.add_middleware(Drain, lifecycle=lifecycle, open_paths=[*STATUS_PATHS, *PAGE_PATHS])
    app.add_middleware(Guard, keys=options.keys, public=[*PROBES, *PAGE_PATHS])
    app.add_middleware(AccessLog, metrics=metrics, log=options.log_requests)
    add_status(app, engines, lifecycle, metrics)
    return metrics
