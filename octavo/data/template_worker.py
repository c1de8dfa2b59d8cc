"""The process in which chat templates render. Run as a script; never imported, and imports nothing of octavo.

jinja2's sandbox keeps a template from Python's internals, but not from taking all the time and memory there is. One
JSON object a line: {"source", "variables"} in, {"text"} or {"error"} out (with "refused" where the template refused the
messages); an empty line gets {}. The parent
(`chat_template.py`) kills this process when an answer is late.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_ERROR_CHARS = 2000


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote; here it only renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """jinja2's hook for the tag."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class RefusalError(TemplateError):
    """The template itself called `raise_exception`."""


def raise_exception(message: object) -> NoReturn:
    """A template's way to refuse messages."""
    raise RefusalError(str(message))


def strftime_now(form: str) -> str:
    """The date, for templates that state it."""
    return datetime.now().strftime(form)


def tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it; jinja2's own filter escapes HTML and knows fewer options."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """jinja2's immutable sandbox with the whitespace rules and functions of transformers."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    made.filters["tojson"] = tojson
    return made


def answer(jinja: ImmutableSandboxedEnvironment, request: dict[str, Any], output_chars: int) -> dict[str, str]:
    """Render one request; whatever goes wrong becomes {"error": what the template did}."""
    try:
        text = jinja.from_string(request["source"]).render(request["variables"])
    except RefusalError as error:
        return {"error": f"refused the messages: {error}", "refused": "yes"}
    except TemplateSyntaxError as error:
        return {"error": f"has a syntax error in line {error.lineno}: {error.message}"}
    except SecurityError as error:
        return {"error": f"did something that is not allowed: {error}"}
    except MemoryError:
        return {"error": "used more memory than its limit"}
    except RecursionError:
        return {"error": "is nested too deeply"}
    except Exception as error:  # noqa: BLE001 (a program of its own: it can raise anything)
        return {"error": f"failed: {type(error).__name__}: {error}"}
    if len(text) > output_chars:
        return {"error": f"wrote more than its limit of {output_chars} characters"}
    return {"text": text}


def main(memory_mib: int, output_chars: int) -> None:
    """Answer requests until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 2**20, memory_mib * 2**20))
    jinja = environment()
    for line in sys.stdin:
        reply = answer(jinja, json.loads(line), output_chars) if line.strip() else {}
        if "error" in reply:  # which may quote anything the template made
            reply["error"] = reply["error"][:MAX_ERROR_CHARS]
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
