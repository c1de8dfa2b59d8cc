"""octavo generate: complete a prompt in the terminal."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from octavo.cli.remote import ApiKey, ModelOrUrl, Remote, Served, check_options, is_url
from octavo.cli.terminal import (
    Choice,
    Device,
    Dtype,
    FrequencyPenalty,
    JsonSchema,
    MaxNewTokens,
    MinP,
    PresencePenalty,
    Quant,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    load_model,
    parse_grammar,
)
from octavo.config import SamplingParams


def run(
    model: ModelOrUrl,
    prompt: Annotated[str, typer.Argument(help="The text to complete; with --chat, a user's message.")],
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template.")] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    api_key: ApiKey = None,
    served: Served = None,
) -> None:
    """Complete the raw PROMPT with MODEL and print the completion.

    MODEL may be the URL of a server with the OpenAI API, such as http://127.0.0.1:8000.

    Example: octavo generate ./SmolLM2-8x135M-Instruct "The capital of France is" --max-new-tokens 8
    """
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        grammar=parse_grammar(json_schema, regex, choice),
    )
    local = {"--quant": quant, "--dtype": dtype, "--device": None if device == "cpu" else device}
    check_options(model, local, {"--api-key": api_key, "--model": served})
    if is_url(model):
        with Remote(model, api_key, served) as remote:
            asked = [{"role": "user", "content": prompt}]
            show(remote.chat(asked, params) if chat else remote.complete(prompt, params))
        return
    opened = load_model(model, quant, device, dtype)
    from octavo.engine.engine import Engine
    from octavo.engine.prompts import Prompt

    request: Prompt = [{"role": "user", "content": prompt}] if chat else prompt
    with Engine.for_one(opened, request, params) as engine:
        show(piece.text for piece in engine.stream(request, params))


def show(texts: Iterator[str]) -> None:
    """Print an answer as it comes."""
    written = False
    try:
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()
            written = written or bool(text)
    except BaseException:
        if written:  # what is said about it begins on a line of its own
            sys.stdout.write("\n")
            sys.stdout.flush()
        raise
    sys.stdout.write("\n")
