"""LangChain: its chat model, its embeddings and its completion model at a server that is not OpenAI's."""

import asyncio
from typing import Any, Literal

import openai
from cases import BASE, MODEL, raises, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"


class Paint(BaseModel):
    """A tin of paint."""

    colour: Literal["red", "green"] = Field(description="what it looks like")
    coats: Literal[1, 2]


@tool
def weather(city: str) -> str:
    """Foretell the weather of a city."""
    return f"Rain in {city}."


def chat(model: str = MODEL, **fields: Any) -> ChatOpenAI:
    """It sends `max_tokens` as max_completion_tokens."""
    given: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "max_retries": 0, "timeout": 60, **fields}
    return ChatOpenAI(base_url=BASE, api_key="none", model=model, **given)


def case_invoke() -> None:
    answer = chat().invoke(
        [SystemMessage("Be short."), HumanMessage(QUESTION), AIMessage("What?"), HumanMessage("Say")]
    )
    assert answer.content and answer.usage_metadata["output_tokens"] == 10
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == MODEL
    assert chat(max_tokens=None, max_completion_tokens=3).invoke(QUESTION).usage_metadata["output_tokens"] == 3


def case_stream() -> None:
    whole = chat().invoke(QUESTION)
    chunks = list(chat().stream(QUESTION))
    assert len(chunks) > 3 and "".join(chunk.content for chunk in chunks) == whole.content
    assert all(chunk.usage_metadata is None for chunk in chunks)
    counted = list(chat(stream_usage=True).stream(QUESTION))
    total = counted[0]
    for chunk in counted[1:]:
        total += chunk
    assert total.content == whole.content
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] == 10
    assert total.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]


def case_async_and_batch() -> None:
    async def main() -> list[str]:
        return [chunk.content async for chunk in chat().astream(QUESTION)]

    whole = chat().invoke(QUESTION).content
    assert "".join(asyncio.run(main())) == whole
    assert [answer.content for answer in chat().batch([QUESTION] * 3)] == [whole] * 3


def case_structured_output() -> None:
    """By json_schema, strict (the default), and by json_mode with the model's own parser."""
    assert isinstance(chat(max_tokens=100).with_structured_output(Paint).invoke(QUESTION), Paint)
    raw = chat(max_tokens=100, temperature=1, seed=3).with_structured_output(Paint, include_raw=True).invoke(QUESTION)
    assert isinstance(raw["parsed"], Paint) and raw["parsing_error"] is None
    streamed = list(chat(max_tokens=100).with_structured_output(Paint).stream(QUESTION))
    assert isinstance(streamed[-1], Paint)
    schema = Paint.model_json_schema()
    assert set(chat(max_tokens=100).with_structured_output(schema).invoke(QUESTION)) == {"colour", "coats"}
    with raises(openai.LengthFinishReasonError):
        chat(max_tokens=3).with_structured_output(Paint).invoke(QUESTION)


def case_functions() -> None:
    forced = chat(max_tokens=200, temperature=1, seed=3)
    assert isinstance(forced.with_structured_output(Paint, method="function_calling").invoke(QUESTION), Paint)
    (call,) = forced.bind_tools([Paint], tool_choice="Paint").invoke(QUESTION).tool_calls
    assert call["name"] == "Paint" and call["id"] and set(call["args"]) == {"colour", "coats"}
    caller = chat("caller", max_tokens=200).bind_tools([weather])  # without tool_choice
    answer = caller.invoke(QUESTION)
    assert [each["args"] for each in answer.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
    streamed = list(caller.stream(QUESTION))
    total = streamed[0]
    for chunk in streamed[1:]:
        total += chunk
    assert [each["args"] for each in total.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
    results = [ToolMessage("Rain.", tool_call_id=each["id"]) for each in answer.tool_calls]
    told = chat().bind_tools([weather], tool_choice="none").invoke([HumanMessage(QUESTION), answer, *results])
    assert told.usage_metadata["output_tokens"] == 10


def case_logprobs_and_several_choices() -> None:
    answer = chat(logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(answer.response_metadata["logprobs"]["content"]) == 10
    answers = chat(n=3, temperature=1.2, seed=5).generate([[HumanMessage(QUESTION)]]).generations[0]
    assert len({each.text for each in answers}) == 3


def case_embeddings() -> None:
    embedder = OpenAIEmbeddings(base_url=BASE, api_key="none", model=MODEL, check_embedding_ctx_length=False)
    vectors = embedder.embed_documents(["a text", "another", "a third"])
    assert [len(vector) for vector in vectors] == [48] * 3
    assert max(abs(a - b) for a, b in zip(vectors[1], embedder.embed_query("another"), strict=True)) < 1e-4
    short = OpenAIEmbeddings(
        base_url=BASE, api_key="none", model=MODEL, check_embedding_ctx_length=False, dimensions=8, chunk_size=2
    )
    assert [len(vector) for vector in short.embed_documents(["a", "b", "c"])] == [8] * 3
    assert len(asyncio.run(embedder.aembed_query("a"))) == 48


def case_completion_model() -> None:
    model = OpenAI(base_url=BASE, api_key="none", model=MODEL, max_tokens=6, temperature=0, max_retries=0)
    whole = model.invoke("Two and")
    assert whole and "".join(model.stream("Two and")) == whole


def case_errors() -> None:
    with raises(openai.BadRequestError, "temperature"):
        chat(temperature=3).invoke(QUESTION)
    with raises(openai.NotFoundError, "gpt-7", MODEL):
        chat("gpt-7").invoke(QUESTION)
    with raises(openai.APIError, "its log says why"):
        list(chat("breaks").stream(QUESTION))


if __name__ == "__main__":
    run(globals(), "langchain-openai", "openai")
