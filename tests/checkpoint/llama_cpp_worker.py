"""What llama.cpp makes of a GGUF file: run by an interpreter that has llama_cpp, so nothing of octavo is imported.

JSON in: {"path", "texts", "prompts", "count"}. JSON out: {"ids": the ids of each text, special tokens parsed, with what
the file says to put around it; "answers": per prompt (a list of ids) the next `count` ids, greedily; "margins": how far
the best logit was above the second each time; "logits": those behind each prompt}. With "quantize": {"out", "type"},
only llama.cpp's own quantisation of the file at "path" is written.
"""

import json
import sys
from typing import Any

import llama_cpp
import numpy as np

F32 = 0


def answer(model: Any, prompt: list[int], count: int) -> dict[str, Any]:
    """`count` ids greedily, each with the margin of its logit, and the logits behind the prompt."""
    model.reset()
    ids, margins, first, fed = [], [], None, prompt
    for _ in range(count):
        model.eval(fed)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),)).copy()
        first = logits.tolist() if first is None else first
        second, best = np.sort(logits)[-2:]
        ids.append(int(logits.argmax()))
        margins.append(float(best - second))
        fed = ids[-1:]
    return {"ids": ids, "margins": margins, "logits": first}


def quantize(path: str, out: str, file_type: int) -> None:
    """llama.cpp's quantisation, with every matrix in the one type (`pure`), but embedding and head in q8_0."""
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.pure, wanted.nthread = file_type, True, 1
    wanted.token_embedding_type = wanted.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    if llama_cpp.llama_model_quantize(path.encode(), out.encode(), wanted):
        sys.exit("llama.cpp could not quantise the file")


def main() -> None:
    """One request from standard input, its answer to standard output."""
    ask = json.load(sys.stdin)
    if "quantize" in ask:
        quantize(ask["path"], ask["quantize"]["out"], ask["quantize"]["type"])
        return
    # keys and values in fp32, as octavo has them: fp16, the default, moves logits as much as fp16 weights do
    model = llama_cpp.Llama(ask["path"], n_ctx=512, n_threads=1, n_threads_batch=1, type_k=F32, type_v=F32,
                            flash_attn=False, verbose=False)  # fmt: skip
    found = [answer(model, prompt, ask["count"]) for prompt in ask["prompts"]]
    ids = [model.tokenize(text.encode(), add_bos=True, special=True) for text in ask["texts"]]
    names = {"answers": "ids", "margins": "margins", "logits": "logits"}
    json.dump({"ids": ids, **{name: [one[key] for one in found] for name, key in names.items()}}, sys.stdout)


if __name__ == "__main__":
    main()
