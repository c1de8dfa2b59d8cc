"""What `octavo bench` runs: find the model, start the parties, measure, and put the figures together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.bench.bounds import WEIGHT_BYTES
from octavo.bench.gguf_cache import cached_gguf
from octavo.bench.machine import Machine
from octavo.bench.parties import (
    PeerOptions,
    find_llama_cpp,
    limits_party,
    llama_cpp_party,
    own_party,
    transformers_party,
)
from octavo.bench.party import Party, Worker
from octavo.bench.results import Subject, figures
from octavo.bench.schedule import Plan, run
from octavo.bench.workers.own import QUANTS
from octavo.checkpoint.hub import is_hub_name
from octavo.checkpoint.pack_cache import locate, open_pack, stored_bits
from octavo.config import home
from octavo.errors import UsageError, UserError
from octavo.native.cores import cores
from octavo.native.library import NativeUnavailable, library
from octavo.progress import Progress, silent

DEFAULT_QUANT = "int4"  # of weights that are not quantised yet


def find_model(spec: str, progress: Progress = silent) -> Path:
    """The folder or GGUF file behind a path, a hub name or the name of a shape, which is written if need be.

    Raises UserError when there is nothing of the kind.
    """
    if Path(spec).expanduser().exists() or is_hub_name(spec):
        return locate(spec)
    from octavo.bench.shapes import SHAPES, synthetic_folder

    if spec in SHAPES:
        return synthetic_folder(spec, SHAPES[spec], _cache(), progress)
    raise UserError(f"{spec}: no such folder or file, no shape ({', '.join(SHAPES)}) and not a hub name (owner/name)")


def chosen_quant(model: Path, quant: str | None) -> str:
    """The form of the weights that is measured: the one asked for, else that of the folder, else int4.

    Raises UserError where the folder is quantised to other bits than were asked for.
    """
    stored = stored_bits(model)
    if stored is None:
        return quant or DEFAULT_QUANT
    if quant not in (None, "fp32", f"int{stored}"):
        raise UserError(f"{model}: is quantised to int{stored}; measure that, or the checkpoint that it was made from")
    return quant or f"int{stored}"


def check_quant(quant: str | None, dense: bool = False) -> None:
    """Raise UsageError for a form of weights that nobody knows or that excludes `dense` models, UserError for one that
    cannot be computed here.

    None needs the native core: `chosen_quant` never makes fp32 of it.
    """
    form = quant or DEFAULT_QUANT
    if form not in WEIGHT_BYTES:
        raise UsageError(f"--quant is {form!r}: choose one of {', '.join(WEIGHT_BYTES)}")
    if dense and QUANTS[form] is None:
        raise UsageError(f"--dense with --quant {form}: dense models run on the native core; choose another form")
    if QUANTS[form] is not None:
        try:
            library()
        except NativeUnavailable as error:
            raise UserError(f"--quant {form}: {error}; --quant fp32 needs only torch") from None


def chosen_threads(threads: int | None) -> int:
    """The threads asked for, else as many as there are cores. Raises UsageError for more: they would wait for one
    another, and measuring the machine takes memory for each of them."""
    usable = cores()
    if threads is not None and threads > usable:
        raise UsageError(f"--threads is {threads}: octavo may use {usable} cores here; take that many or fewer")
    return threads or usable


def bench(
    model: Path,
    quant: str,
    plan: Plan,
    peers: PeerOptions,
    threads: int,
    say: Callable[[str], None],
    progress: Progress = silent,
    dense: bool = False,
) -> dict[str, Any]:
    """Measure the model on octavo and the peers; returns the object that `octavo bench --json` prints (results.py).

    quant: one that `check_quant` lets pass. dense: beside dense models of the mixture's sizes too. The machine's limits
    are measured before and after, and the higher ones count. Raises UserError when the model cannot be used, or a peer
    is not there or cannot load it; what goes wrong later with a peer is in `errors`.
    """
    from octavo.bench.dense import dense_pack, dense_shapes
    from octavo.checkpoint.source import open_source

    name = model.resolve().name if model.is_dir() else model.stem
    config = open_source(model).config
    shapes = dense_shapes(config, name) if dense else {}
    if (bits := QUANTS[quant]) is not None:
        open_pack(model, bits, progress)  # here, with a bar, so that our worker's start and memory are a warm one's
    parties = [own_party(model, quant, config, plan.metrics, plan.steps, threads)]
    parties += [_peer(peer, model, quant, peers, threads, say) for peer in peers.names]
    for size, shape in shapes.items():
        say(f"looking for a dense model of the {size} size, or writing it")
        pack = dense_pack(shape, quant, _cache(), progress)
        parties.append(own_party(pack, quant, shape, plan.metrics, plan.steps, threads, f"dense_{size}"))
    say("measuring the machine's limits")
    machine = _limits(threads, plan.timeout)
    measured = run(parties, plan, say, progress)
    machine = machine.best(_limits(threads, plan.timeout))
    return figures(Subject(name, config, quant, threads, shapes), plan, machine, measured)


def _peer(name: str, model: Path, quant: str, options: PeerOptions, threads: int, say: Callable[[str], None]) -> Party:
    if name == "transformers":
        return transformers_party(model, threads)
    python = find_llama_cpp(options.python)
    if options.file is not None:
        if not options.file.is_file():
            raise UserError(f"--peer-file is {options.file}: no such file")
        return llama_cpp_party(options.file, python, threads, options.deepest)
    say("looking for the model as GGUF, or writing it")
    return llama_cpp_party(cached_gguf(model, quant, _cache()), python, threads, options.deepest)


def _limits(threads: int, timeout: float) -> Machine:
    with Worker(limits_party(threads)) as worker:
        worker.ready(timeout)
        return Machine(**worker.ask({"metric": "limits"}, timeout))


def _cache() -> Path:
    return home() / "bench"
