"""Contents of chat messages in the form that a template reads.

A message's content is a string or a list of parts ({"type": "text", "text": ...}), and many templates know one form
only. Some fail on the other; MiniMax-Text-01's silently leaves strings out, and reads no part but the first. What a
template reads is found by trying it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from octavo.data.chat_template import ChatTemplate
from octavo.errors import UserError

Form = Literal["string", "parts", "one part"]
_WORDS = ("octavo-probe-1", "octavo-probe-2")


class ContentForms:
    """Which forms a template reads; each is tried once, when it is first asked about."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._reads: dict[Form, bool] = {}

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`messages` with every text where the template reads it. Parts that are joined get a line break between them;
        contents that are not all text stay as they are."""
        return [
            {**message, "content": self._content(message["content"])} if "content" in message else dict(message)
            for message in messages
        ]

    def reads(self, form: Form) -> bool:
        """Whether a user's content of this form shows, whole, in what the template writes."""
        if form not in self._reads:
            self._reads[form] = self._shows(form)
        return self._reads[form]

    def _content(self, content: Any) -> Any:
        given: Form = "string" if isinstance(content, str) else "parts"
        texts = [content] if isinstance(content, str) else _texts(content)
        if not texts or self.reads(given):
            return content
        other: Form = "parts" if given == "string" else "string"
        joined = "\n".join(texts)
        for form in ("one part", other):
            if self.reads(form):
                return joined if form == "string" else [{"type": "text", "text": joined}]
        return content

    def _shows(self, form: Form) -> bool:
        texts = _WORDS if form == "parts" else ["\n".join(_WORDS)]
        content = texts[0] if form == "string" else [{"type": "text", "text": text} for text in texts]
        try:
            written = self._template.render([{"role": "user", "content": content}])
        except UserError:
            return False
        # a list written out by Python or as JSON shows its words too
        return all(word in written for word in _WORDS) and "'text':" not in written and '"text":' not in written


def _texts(content: Any) -> list[str]:
    """The texts of a list of text parts; nothing for any other content."""
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return texts if len(texts) == len(parts) else []
