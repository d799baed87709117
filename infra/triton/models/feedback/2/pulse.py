"""Ends a process of the model that has stood still, which must not go on.

While Triton waits for an answer it wants a sign of life each second; a thread of its backend gives one every 0.3 s.
Where none comes, because the process got no processor or the machine stood still, Triton gives the question up and
frees the shared memory that it lies in. A process that goes on then answers it all the same: from then on each answer
is taken for that to the next question, and memory is used that was freed, until the server crashes (python_backend
r24.10, StubLauncher::ReceiveMessageFromStub; seen, docs/model.md). Of one that died Triton says so, and it is loaded
anew.
"""

# ruff: noqa: INP001 - Triton loads this folder by path; it is no package

import faulthandler
import signal
import threading
import time
from typing import Self

#: Less than Triton's second by the 0.3 s that may have passed since the last sign of life.
STILL_S = 0.7
BEAT_S = 0.1


class Pulse:
    """Ends the process where, between `with` and its end, it stands still or a step takes more than `step_s` seconds.

    A timer of the kernel does it, which the beats of a thread put off; so one that never lets go of the interpreter's
    lock is ended too. Where every thread was is written to Triton's log first.
    """

    def __init__(self, step_s: float) -> None:
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        self._step_s = step_s
        self._began: float | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def __enter__(self) -> Self:
        with self._lock:
            self.step()
            signal.setitimer(signal.ITIMER_REAL, STILL_S)
        return self

    def step(self) -> None:
        """The work goes on: a step of it is done, or begins."""
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._began = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            with self._lock:
                if self._began is not None and time.monotonic() - self._began < self._step_s:
                    signal.setitimer(signal.ITIMER_REAL, STILL_S)
