"""Processes that take a step when they are told to: two sides side by side, one at a time.

  python side.py ...                    says {"ready": {...facts}}, then waits
  "step\\n" on its standard input       one step, answered by its loss, seconds and CPU seconds
  "forget\\n"                           the high-water mark of memory starts anew
  "end\\n"                              {"memory": {...}}, and the process leaves

A step of one side follows a step of the other, so that a busy machine slows both alike. Nothing but
the standard library is imported here, for either side's memory is counted from its imports on.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ANSWERS = sys.stdout  # before a library prints to it
_PAUSE = 0.2  # seconds between turns: threads of the side before stop spinning
# Becomes another program on so many cores: XLA has no other setting for its number of threads.
_PINNED = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
os.execvp(sys.argv[2], sys.argv[2:])
"""


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def serve(step: Callable[[], float], facts: Mapping[str, Any], *, imported: int) -> None:
    """Takes steps as it is told to; returns at "end".

    Args:
      step: does the work, waits for it and returns the loss.
      facts: said at the start.
      imported: `resident()` after the imports and before anything was loaded.
    """
    _answer({"ready": dict(facts)})
    for line in sys.stdin:
        command = line.strip()
        if command == "end":
            break
        if command == "forget":
            _forget()
            continue
        started, busy = time.perf_counter(), time.process_time()
        loss = step()
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        _answer({"loss": loss, "seconds": seconds, "cpu": busy})
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = {
        "imports": imported,
        "steps": _status("VmHWM") - imported,  # since "forget"
        "whole life": whole - imported,  # with loading and compiling
    }
    _answer({"memory": memory})


class Side:
    """The parent's end of one process."""

    def __init__(self, name: str, command: Sequence[str], *, threads: int, log: str):
        """Starts it. Its standard error goes to the file `log`."""
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {
            **os.environ,
            **dict.fromkeys(limits, str(threads)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.name, self._log = name, log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PINNED, str(threads), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def ready(self) -> dict[str, Any]:
        return self._read("ready")

    def step(self) -> None:
        time.sleep(_PAUSE)
        self._tell("step")
        found = self._read()
        self.seconds.append(found["seconds"])
        self.cpu.append(found["cpu"])
        self.losses.append(found["loss"])

    def forget(self) -> None:
        """What was timed so far, and the memory's high-water mark."""
        self.seconds.clear()
        self.cpu.clear()
        self._tell("forget")

    def end(self) -> dict[str, int]:
        self._tell("end")
        found = self._read("memory")
        self._process.wait(60)
        return found

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _tell(self, word: str) -> None:
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _read(self, key: str = "") -> Any:
        for line in self._process.stdout:
            if line.startswith("@@"):
                found = json.loads(line[2:])
                return found[key] if key else found
        raise self._gone()

    def _gone(self) -> RuntimeError:
        end = pathlib.Path(self._log).read_text()[-2000:]
        return RuntimeError(f"The side {self.name!r} ended before it was told to:\n{end}")


def _answer(value: Mapping[str, Any]) -> None:
    print("@@" + json.dumps(value), file=_ANSWERS, flush=True)


def _status(name: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


def _forget() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what loading and compiling have freed goes back
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes VmRSS
