"""POST /v1/embeddings: what clients send, and vectors as they get them."""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from octavo.serve.protocol.limits import MAX_INPUTS
from octavo.serve.protocol.strict import Strict
from octavo.serve.protocol.texts import Checked, Texts, as_texts


class EmbeddingRequest(Strict):
    """The body of POST /v1/embeddings. `pooling` is an extension: the last token's hidden state, or the mean."""

    model: str
    input: Checked
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    pooling: Literal["last", "mean"] | None = None

    @field_validator("input", mode="before", json_schema_input_type=Texts)
    @classmethod
    def _inputs(cls, given: Any) -> Any:
        return as_texts(given, MAX_INPUTS)

    def shown(self, vector: NDArray[np.float32]) -> list[float] | str:
        """A vector, fp32 [H], cut to `dimensions`, of length 1 (as OpenAI's are), in the format asked for."""
        cut = vector[: self.dimensions]
        unit = (cut / max(float(np.linalg.norm(cut.astype(np.float64))), 1e-12)).astype("<f4")
        if self.encoding_format == "base64":
            return base64.b64encode(unit.tobytes()).decode("ascii")
        return unit.tolist()
