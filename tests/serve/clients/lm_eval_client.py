"""lm-eval's two ways to a server, on tasks of a folder of ours, with a tokenizer of a folder of ours.

`python lm_eval_client.py URL TOKENIZER_FOLDER TASK_FOLDER CACHE_FOLDER` prints what each document of each task got.
"""

import json
import os
import sys
import traceback
from importlib.metadata import version
from typing import Any

URL, TOKENIZER, TASKS, CACHE = sys.argv[1:]
os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] = CACHE
MODEL, CONTEXT = "lab/tiny", 2048
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ids": ("local-completions", "choice", {"tokenized_requests": True}),
    "ids, batches": ("local-completions", "choice", {"tokenized_requests": True, "batch_size": 5}),
    "ids, side by side": ("local-completions", "choice", {"tokenized_requests": True, "num_concurrent": 4}),
    "text": ("local-completions", "choice", {"tokenized_requests": False}),
    "text, batches side by side": (
        "local-completions", "choice", {"tokenized_requests": False, "batch_size": 3, "num_concurrent": 3},
    ),
    "answers": ("local-completions", "answer", {"tokenized_requests": True, "batch_size": 2}),
    "answers to text": ("local-completions", "answer", {"tokenized_requests": False, "num_concurrent": 2}),
    "chats": ("local-chat-completions", "chat", {"num_concurrent": 2}),
}  # fmt: skip


def run(model: str, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    chat = model == "local-chat-completions"
    path = "chat/completions" if chat else "completions"
    tokenizer = {} if chat else {"tokenizer": TOKENIZER, "tokenizer_backend": "huggingface"}
    results: Any = lm_eval.simple_evaluate(
        model=model,
        model_args={"model": MODEL, "base_url": f"{URL}/v1/{path}", "max_length": CONTEXT, "max_retries": 1}
        | tokenizer
        | arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=TASKS, include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    figures = {name.split(",")[0]: value for name, value in results["results"][task].items()}
    return {"figures": figures, "answers": [sample["filtered_resps"] for sample in samples]}


def main() -> None:
    """Print the runs, and those that failed."""
    passed, failed, runs = [], {}, {}
    for name, (model, task, arguments) in RUNS.items():
        try:
            runs[name] = run(model, task, arguments)
        except Exception:  # noqa: BLE001 (the next run is to be tried all the same)
            failed[name] = traceback.format_exc()
        else:
            passed.append(name)
    print(json.dumps({"versions": {"lm_eval": version("lm_eval")}, "passed": passed, "failed": failed, "runs": runs}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
