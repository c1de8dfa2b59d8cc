"""lm-eval against a live server finds what the engine itself says."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from tests.serve.environments import interpreter, play
from tests.tiny import tiny_tokenizer_files

QUESTIONS = ["The capital of France is", "A café is", "def f(x):", "你好", "Two and two are"]
CHOICES = [["Paris.", "Rome, I think."], ["naïve", "open"], ["\n    return x", "x + 1"], ["世界", "x"]]
LENGTH = 9
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ANSWER = """
task: %s
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{expected}}"
generation_kwargs: {until: ["never said"], max_gen_toks: %d, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def write_task(folder: Path, name: str, yaml: str, documents: list[dict[str, Any]]) -> None:
    lines = [json.dumps(document) for document in documents]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    data = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{folder}/{name}.jsonl"}}}}\ntest_split: test\n'
    (folder / f"{name}.yaml").write_text(yaml + data)


def favourite(engine: Engine, question: str) -> str:
    """Text that greedy decoding writes, when it is tokenised together with the question too."""
    (said,) = engine.generate([question], SamplingParams(max_new_tokens=30))
    parts = [said.text[:length] for length in range(1, len(said.text))]
    scores = engine.log_likelihoods([(question, part) for part in parts])
    return next(part for part, score in zip(parts, scores, strict=True) if score.is_greedy)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_lm_eval(url: str, engine: Engine, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    choices = [[f" {choice}" for choice in own] for own in CHOICES] + [[" a", favourite(engine, QUESTIONS[-1])]]
    pairs: list[Any] = [(question, choice) for question, own in zip(QUESTIONS, choices, strict=True) for choice in own]
    scores = engine.log_likelihoods(pairs)
    assert [score.is_greedy for score in scores] == [False] * 9 + [True]
    best = [int(scores[at + 1].total > scores[at].total) for at in range(0, len(scores), 2)]
    right = [best[0], 1 - best[1], *best[2:]]  # so that one of them is wrong
    params = SamplingParams(max_new_tokens=LENGTH)
    texts = [done.text for done in engine.generate(QUESTIONS, params)]
    chats = [engine.complete([{"role": "user", "content": question}], params).text for question in QUESTIONS]
    assert len(set(texts + chats)) == 10 and 0 < sum(best) < 5

    tokenizer, tasks, cache = (tmp_path / name for name in ("tokenizer", "tasks", "cache"))
    tokenizer.mkdir(), tasks.mkdir()
    for name, content in tiny_tokenizer_files().items():
        (tokenizer / name).write_bytes(content)
    asked = [
        {"question": question, "choices": own, "right": at}
        for question, own, at in zip(QUESTIONS, choices, right, strict=True)
    ]
    write_task(tasks, "choice", CHOICE, asked)
    for name, expected in (("answer", texts), ("chat", chats)):
        documents = [{"question": each, "expected": text} for each, text in zip(QUESTIONS, expected, strict=True)]
        documents[0]["expected"] = "something else"
        write_task(tasks, name, ANSWER % (name, LENGTH), documents)

    python = interpreter("lm-eval", tmp_path_factory.mktemp("clients"))
    runs = play(python, "lm_eval_client.py", url, *map(str, (tokenizer, tasks, cache)), seconds=600)["runs"]
    assert len(runs) == 8
    for name, found in runs.items():
        if "answers" not in name and name != "chats":
            assert found["figures"]["acc"] == 0.8, name
            given = [tuple(each) for answers in found["answers"] for each in answers]
            assert [each[0] for each in given] == pytest.approx([score.total for score in scores], abs=1e-4), name
            assert [each[1] for each in given] == [score.is_greedy for score in scores], name
        else:
            assert [answers[0] for answers in found["answers"]] == (chats if name == "chats" else texts), name
            assert found["figures"]["exact_match"] == 0.8, name
