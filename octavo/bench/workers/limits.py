"""The machine's limits, measured in a process of their own: its BLAS gets the threads that its environment names."""

import sys
from typing import Any

from octavo.bench.machine import Machine, read_bandwidth, sgemm_rate
from octavo.bench.workers.protocol import serve
from octavo.native.cores import cores


def main(threads: str) -> int:
    """Answer each request with the limits, measured anew."""

    def handle(_: dict[str, Any]) -> dict[str, Any]:
        return Machine(read_bandwidth(int(threads)), sgemm_rate(), cores()).as_dict()

    return serve(lambda: ({}, handle))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
