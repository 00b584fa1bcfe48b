"""Renders one template after another in `template_worker`, within limits of time and memory."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from pyllm2.errors import BackendError, PyLLM2Error
from pyllm2.tokenizers import template_worker

SECONDS = 10  # for one template; a usual one takes a millisecond
MEMORY_BYTES = 2**30  # address space of the process that renders
MAX_CHARACTERS = 2**26  # of the text
START_SECONDS = 120  # for the interpreter and jinja2, on a busy machine


class DiedError(Exception):
    """The process ended without an answer: it was killed, or has crashed."""


class TemplateProcess:
    """A child process that renders templates; it is started when it is needed first.

    Threads take turns. In a forked child of the caller another process is started.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def render(self, source: str, variables: dict[str, Any], now: Any) -> dict[str, Any]:
        """{"text"}, or {"error", "message", "line"}: see `template_worker`.

        Raises BackendError without jinja2, PyLLM2Error if no process can be started.
        """
        request = {"source": source, "variables": variables, "now": now, "limit": MAX_CHARACTERS}
        data = pickle.dumps(request)
        if self._owner != os.getpid():  # also the lock may be held by a thread of the parent
            self._process, self._lock, self._owner = None, threading.Lock(), os.getpid()
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                answer = self._exchange(data, SECONDS)
                if answer.get("error") == "memory":
                    self._end()
                return answer
            except DiedError as died:
                self._end()
                return {"error": str(died)}
            except BaseException:  # Ctrl-C: the answer would be taken for that of the next request
                self._end()
                raise

    def _start(self) -> None:
        self._end()
        # -I and -S: nothing of the environment or the working directory is imported.
        argv = [sys.executable, "-I", "-S", "-X", "utf8", template_worker.__file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, **pipes)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise PyLLM2Error(f"chat template: cannot start {sys.executable}: {reason}") from None
        atexit.register(self._end)
        first = {"path": sys.path, "memory": MEMORY_BYTES}
        try:
            answer = self._exchange(pickle.dumps(first), START_SECONDS)
        except DiedError:
            self._end()
            raise PyLLM2Error("chat template: the process that renders it did not start") from None
        if answer.get("error") == "absent":
            self._end()
            raise BackendError("chat templates need jinja2: pip install 'pyllm2[models]'")

    def _exchange(self, data: bytes, seconds: float) -> dict[str, Any]:
        """Send a message and wait for the answer. Raises DiedError("time") or Died("crash")."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                template_worker.write_message(process.stdin, data)
            found = template_worker.read_message(process.stdout)
        finally:
            timer.cancel()
        if found is None:
            raise DiedError("time" if late.is_set() else "crash")
        answer: dict[str, Any] = json.loads(found.decode("utf-8", "surrogatepass"))
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        atexit.unregister(self._end)
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        process.wait()


PROCESS = TemplateProcess()
