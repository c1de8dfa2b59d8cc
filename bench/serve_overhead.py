"""What the server costs a decoded token: the time of a step with 8 sequences, through HTTP and in the process.

    python bench/serve_overhead.py ./SmolLM2-8x135M-Instruct --quant int4

The same prompts in turns: handed to the engine by a listener that does nothing, and asked for by 8 clients in a process
of their own (load.py). A step's time is that from one call of `Runner.step` to the next, while all sequences decode.
`loop` is the CPU time of the event loop's thread a token.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from octavo import Engine, EngineOptions, SamplingParams
from octavo.bench.load import chat, connect
from octavo.config import FORMS
from octavo.engine.open import open_model
from octavo.serve.app import create_app
from octavo.serve.server import Server, listen

SUBJECTS = ("Rome", "the sea", "trains", "honey bees", "mathematics", "old maps", "bread", "the moon")


class Clock:
    """Begins of the steps that an engine computes, with their tokens."""

    def __init__(self, engine: Engine) -> None:
        self.steps: list[tuple[float, float, int]] = []
        compute = engine.runner.step

        def timed(rows):  # noqa: ANN001, ANN202
            began = time.perf_counter()
            result = compute(rows)
            self.steps.append((began, time.perf_counter(), len(rows.ids)))
            return result

        engine.runner.step = timed  # type: ignore[method-assign]

    def take(self, batch: int) -> tuple[list[float], list[float]]:
        """Seconds of the steps of `batch` tokens that followed one another since the last call, and inside of them."""
        steps, self.steps = self.steps, []
        full = [i for i, step in enumerate(steps[:-1]) if step[2] == batch == steps[i + 1][2]]
        return [steps[i + 1][0] - steps[i][0] for i in full], [steps[i][1] - steps[i][0] for i in full]


def messages(subject: str) -> list[dict[str, str]]:
    """A prompt."""
    return [{"role": "user", "content": f"Write a long story about {subject}."}]


def in_process(engine: Engine, batch: int, tokens: int) -> None:
    """Let the engine answer, with a listener that only waits for the end."""
    done = threading.Semaphore(0)

    def emit(piece):  # noqa: ANN001, ANN202
        if isinstance(piece, Exception) or piece.finish_reason:
            done.release()

    params = SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    tickets = [engine.submit(messages(subject), params, emit) for subject in SUBJECTS[:batch]]
    for _ in tickets:
        done.acquire()


async def ask_all(url: str, batch: int, tokens: int, late: bool) -> None:
    """What the other process does. late: it reads only when a line comes on standard input, so that its own work does
    not slow the server down (the sockets hold that much)."""
    fields = {
        "model": "m",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    connections = [await connect(url) for _ in range(batch)]
    requests = [chat(url, messages(subject), **fields) for subject in SUBJECTS[:batch]]
    for connection, request in zip(connections, requests, strict=True):
        connection.send(request)
    if late:
        for connection in connections:
            connection.transport.pause_reading()
        await asyncio.to_thread(sys.stdin.readline)
        for connection in connections:
            connection.transport.resume_reading()
    await asyncio.gather(*(connection.over for connection in connections))
    answers = [connection.answer for connection in connections]
    for answer in answers:
        assert answer.status == 200, answer.body
        assert answer.usage["completion_tokens"] == tokens, answer.usage


def cpu_of(thread: threading.Thread) -> float:
    """Seconds of CPU time that a thread has had."""
    return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--profile", help="write a profile of the event loop's thread here")
    parser.add_argument("--late", action="store_true", help="the client reads when the answers are complete")
    parser.add_argument("--ask", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        asyncio.run(ask_all(arguments.ask, arguments.batch, arguments.tokens, arguments.late))
        return
    options = EngineOptions(context=2048, memory_tokens=arguments.batch * 1024, speculate=0)
    with Engine(open_model(arguments.model, FORMS[arguments.quant]), options) as engine, listen("127.0.0.1", 0) as at:
        server, clock = Server(create_app({"m": engine}), at), Clock(engine)
        thread = threading.Thread(
            target=run_profiled if arguments.profile else server.run,
            args=(server, arguments.profile) if arguments.profile else (),
        )
        thread.start()
        found: dict[str, list[float]] = {
            "process": [],
            "http": [],
            "loop_us": [],
            "inside_process": [],
            "inside_http": [],
        }
        for _ in range(arguments.rounds):
            in_process(engine, arguments.batch, arguments.tokens)
            whole, inside = clock.take(arguments.batch)
            found["process"] += whole
            found["inside_process"] += inside
            before = cpu_of(thread)
            command = [
                sys.executable,
                __file__,
                arguments.model,
                "--ask",
                server.url,
                "--batch",
                str(arguments.batch),
                "--tokens",
                str(arguments.tokens),
            ]
            client = subprocess.Popen(command + ["--late"] * arguments.late, stdin=subprocess.PIPE)
            if arguments.late:
                time.sleep(0.5)
                while engine.statistics().running:
                    time.sleep(0.05)
            client.communicate(b"\n")
            assert client.returncode == 0
            found["loop_us"].append(1e6 * (cpu_of(thread) - before) / arguments.batch / arguments.tokens)
            whole, inside = clock.take(arguments.batch)
            found["http"] += whole
            found["inside_http"] += inside
        server.should_exit = True
        thread.join()
    medians = {name: statistics.median(values) for name, values in found.items()}
    means = {name: statistics.fmean(values) for name, values in found.items()}
    print(
        json.dumps({"medians": medians, "means": means, "overhead": medians["http"] / medians["process"] - 1}, indent=1)
    )


def run_profiled(server: Server, path: str) -> None:
    """The server's thread under a profiler."""
    import cProfile

    profile = cProfile.Profile()
    profile.runcall(server.run)
    profile.dump_stats(path)


if __name__ == "__main__":
    main()
