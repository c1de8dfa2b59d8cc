"""Tools of a request are checked, and errors name the field."""

from typing import Any

import pytest

from octavo.data.tool_specs import MAX_TOOLS, read_tools
from octavo.errors import UserError
from tests.data.tool_models import TOOLS, WEATHER, tool


def test_good_tools() -> None:
    weather, clock = read_tools(TOOLS)
    assert weather.name == "get_weather" and weather.parameters == WEATHER["function"]["parameters"]
    assert clock.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert (weather.strict, weather.given) == (False, WEATHER)
    assert read_tools(None) == read_tools([]) == ()
    (free,) = read_tools([tool("f", {}, strict=True)])
    assert free.parameters == {"type": "object"} and free.strict
    assert len(read_tools([tool(f"f{index}") for index in range(MAX_TOOLS)])) == MAX_TOOLS


BAD: dict[str, Any] = {
    "tools is 'x'": "x",
    "tools is {}": {},
    "tools has 129 entries": [tool(f"f{index}") for index in range(MAX_TOOLS + 1)],
    "tools[1] is None": [WEATHER, None],
    "tools[0].type is 'retrieval'": [{"type": "retrieval"}],
    "tools[0].type is None": [{"function": {"name": "f"}}],
    "tools[0].function is None": [{"type": "function"}],
    "tools[1].function.name is 'a b'": [WEATHER, tool("a b")],
    "tools[0].function.name is ''": [tool("")],
    "tools[0].function.name is 'é'": [tool("é")],
    "tools[0].function.name is 'f\\n'": [tool("f\n")],
    "tools[0].function.name is 'xxxxxx": [tool("x" * 65)],
    "tools[0].function.name is 5": [tool(5)],  # type: ignore[arg-type]
    "tools[2].function.name is 'get_time', which tools[1] has": [*TOOLS, tool("get_time")],
    "tools[0].function.parameters is []": [tool("f", [])],
    "tools[0].function.parameters.type is 'string'": [tool("f", {"type": "string"})],
    "tools[0].function.strict is 'yes'": [tool("f", strict="yes")],
    "tools[0].function.description is 3": [{"type": "function", "function": {"name": "f", "description": 3}}],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_tools(message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_tools(BAD[message])
    assert str(caught.value).startswith(message) and len(str(caught.value)) < 250
