"""The models of one server, by the names that clients use."""

import time
from collections.abc import Mapping

from octavo.engine.engine import Engine
from octavo.serve.errors import ApiError, Json


class Models:
    """Engines by name, in the order they were given."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self._created = int(time.time())

    def engine(self, name: str) -> Engine:
        """The engine of a model. Raises ApiError 404 for a name that no model has."""
        if name not in self.engines:
            known = ", ".join(repr(each) for each in self.engines)
            message = f"the model {name[:100]!r} does not exist: this server has {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.engines[name]

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
