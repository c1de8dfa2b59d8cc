"""octavo quickstart: from nothing to a mixture of experts that answers."""

from typing import Annotated

import typer

from octavo.cli.serve import Host, Port, serve_models
from octavo.cli.terminal import Device, Dtype, Quant, load_model, parse_quant, say
from octavo.progress import progress_bar


def run(
    once: Annotated[str | None, typer.Option(help="Print the answer to this question and exit.")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="Another dense parent: a folder, a GGUF file or a hub name [default: SmolLM2-135M]."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Get SmolLM2-135M-Instruct, upcycle it to 8 experts and serve it with a chat page.

    Example: octavo quickstart --once "What is the capital of France?"
    """
    from octavo.engine.engine import Engine
    from octavo.engine.open import check_quant
    from octavo.quickstart import answer, check_answer, prepare
    from octavo.serve.server import listen

    check_quant(parse_quant(quant, dtype), device)  # before anything is fetched and made
    listener = None if once is not None else listen(host, port)
    with progress_bar() as progress:
        folder, parent = prepare(from_, say, progress)
        if parent is not None:
            check_answer(parent, folder, from_, say, progress)
    with Engine(load_model(str(folder), quant, device, dtype)) as engine:
        if listener is not None:
            serve_models({folder.name: engine}, [folder.name], listener)
        elif once is not None:
            print(answer(engine, once))
