"""octavo inspect: how large a model is and what it needs, before anything is downloaded or loaded."""

from typing import Annotated

import typer

from octavo.cli.terminal import Json, report


def run(
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, a preset or a hub name (owner/name).")],
    as_json: Json = False,
) -> None:
    """Show the parameters of MODEL (all, active per token, embedding), its memory per token and sequence, its layers.

    A folder needs no weights: config.json is enough. Presets: mixtral-8x7b, mixtral-8x22b, eurux-8x22b,
    minimax-text-01, mistral-7b, smollm2-135m. Weights are never loaded; from the hub only config.json is fetched.

    Example: octavo inspect minimax-text-01
    """
    from octavo.checkpoint.figures import model_figures
    from octavo.checkpoint.inspect import inspect
    from octavo.cli.figures_table import figures_table

    found = inspect(model)
    figures = model_figures(found.config, found.bits)
    about = {"model": model, "kind": found.kind, "weights_checked": found.weights_checked}
    report(figures_table(figures, model, found.kind, found.weights_checked), about | figures.as_dict(), as_json)
