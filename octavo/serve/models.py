"""The models of one server, by the names that clients use."""

import time
from collections.abc import Mapping

from octavo.engine.engine import Engine
from octavo.serve.errors import ApiError, Json
from octavo.serve.protocol.logprobs import TokenTexts


class Models:
    """Engines by name, in the order they were given."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self._texts: dict[str, TokenTexts] = {}
        self._created = int(time.time())

    def name(self, given: str | None) -> str:
        """The model that a request means: the only one, where it names none. Raises ApiError 400 where there are
        several."""
        if given is None and len(self.engines) > 1:
            raise ApiError(400, f"model: name one of {', '.join(self.engines)}", param="model", code="invalid_value")
        return next(iter(self.engines)) if given is None else given

    def engine(self, name: str) -> Engine:
        """The engine of a model. Raises ApiError 404 for a name that no model has."""
        if name not in self.engines:
            known = ", ".join(repr(each) for each in self.engines)
            message = f"the model {name[:100]!r} does not exist: this server has {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.engines[name]

    def texts(self, name: str) -> TokenTexts:
        """What each token of a model writes; found out at the first call, which takes a moment."""
        if name not in self._texts:
            engine = self.engine(name)
            self._texts[name] = TokenTexts(engine.tokenizer, engine.config.vocab_size)
        return self._texts[name]

    def card(self, name: str) -> Json:
        """What GET /v1/models/{name} says. Raises ApiError 404 for a name that no model has."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "octavo",
            "max_model_len": self.engine(name).context,
        }

    def cards(self) -> Json:
        """What GET /v1/models says."""
        return {"object": "list", "data": [self.card(name) for name in self.engines]}
