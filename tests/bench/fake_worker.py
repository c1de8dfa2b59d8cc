"""A party that computes nothing: `fake_worker.py NAME LOG MODE RATES`.

Answers the n-th request for a metric with the n-th of RATES (comma list, tokens/s, from the start again after the
last), and writes when it began and ended into LOG. MODE is well, or what goes wrong: no-load, error, crash, hang,
garbage; the last four at decode_8.
"""

import json
import os
import sys
import time
from collections import Counter


def main(name: str, log: str, mode: str, rates: str) -> None:
    """Speak the protocol on standard input and output."""

    def note(word: str, metric: str) -> None:
        with open(log, "a") as file:
            file.write(f"{word} {name} {metric} {os.getpid()}\n")

    note("start", "-")
    if mode == "no-load":
        print(json.dumps({"error": "RuntimeError: no such model"}), flush=True)
        return
    print(json.dumps({"ready": True, "version": f"{name} 1", "weight_bytes": 4.0, "key_value_bytes": 4.0,
                      "load_seconds": 0.5, "resident_bytes": 2**20}), flush=True)  # fmt: skip
    asked: Counter[str] = Counter()
    for line in sys.stdin:
        request = json.loads(line)
        metric, tokens = request["metric"], request["count"] * (request["steps"] if request["kind"] == "decode" else 1)
        note("begin", metric)
        if metric == "decode_8" and mode != "well":
            go_wrong(mode)
            continue
        rate = float(rates.split(",")[asked[metric] % len(rates.split(","))])
        asked[metric] += 1
        time.sleep(0.01)
        note("end", metric)
        print(json.dumps({"seconds": tokens / rate, "tokens": tokens}), flush=True)


def go_wrong(mode: str) -> None:
    """As the mode says."""
    if mode == "error":
        print(json.dumps({"error": "ValueError: too many sequences"}), flush=True)
    elif mode == "garbage":
        print("llama_decode: what a surprise", flush=True)
    elif mode == "crash":
        print("terminate called after throwing", file=sys.stderr, flush=True)
        os.abort()
    else:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
