"""Progress of a training run: a bar on a terminal, lines elsewhere; samples go to stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyllm2.cli.output import Output, is_terminal, say
from pyllm2.errors import PyLLM2Error
from pyllm2.training.bits import bits_per_byte
from pyllm2.training.recipe import Recipe
from pyllm2.training.report import Report, Update

ERASE = "\x1b[K"  # a terminal's: from the cursor to the end of the line


class Progress(Report):
    """Prints progress on stderr and samples on stdout.

    tokenizer: decodes samples; None: they are printed as token ids
    bytes_per_token: of the validation data, for bits per byte (None: not known)
    """

    def __init__(
        self, recipe: Recipe, tokenizer: Any, bytes_per_token: float | None = None
    ) -> None:
        self.bytes_per_token = bytes_per_token
        self.steps, self.tokens_per_step = recipe.steps, recipe.total_batch
        self.tokenizer = tokenizer
        self.last_loss: float | None = None
        self.last_validation: float | None = None
        self.bar: Any = None
        self.start = 0
        self.began = self.last = time.perf_counter()

    def begin(self, step: int) -> None:
        self.start = step
        self.began = self.last = time.perf_counter()
        self.bar = _bar(step, self.steps)

    def update(self, update: Update) -> None:
        now = time.perf_counter()
        rate = self.tokens_per_step / max(now - self.last, 1e-9)
        self.last, self.last_loss = now, update.loss
        figures = f"loss {update.loss:.6f} | norm {update.norm:.4f} | lr {update.rate:.2e}"
        if update.skipped:
            figures += f" | skipped ({update.z_loss:+.2f}z, {update.z_norm:+.2f}z)"
        if self.bar is None:
            say(f"step {update.done:4d}/{self.steps} | {figures} | {rate:,.0f} tokens/s")
        else:
            self.bar.set_description_str(f"{figures} | {rate:,.0f} tokens/s", refresh=False)
            self.bar.update()

    def validation(self, step: int, loss: float) -> None:
        self.last_validation = loss
        self._line(f"step {step:4d}/{self.steps} | validation loss {loss:.6f}{self._bits(loss)}")
        self.last = time.perf_counter()

    def sample(self, step: int, tokens: list[int]) -> None:
        """Print a sample on stdout, above the bar; if stdout is closed, training continues."""
        if self.tokenizer is None:
            text = " ".join(map(str, tokens)).encode()
        else:
            text = self.tokenizer.decode(tokens)
        with self._above_the_bar(), suppress(BrokenPipeError, PyLLM2Error):
            say(f"sample after {step} steps:")
            Output().write(text + b"\n", end=True)
        self.last = time.perf_counter()

    def saved(self, step: int, path: str) -> None:
        self._line(f"saved {path}")
        self.last = time.perf_counter()

    def summary(self, step: int) -> str:
        """One line about the run: time, speed, last losses, peak memory."""
        seconds = time.perf_counter() - self.began
        parts = [f"{step - self.start} steps in {seconds:.1f} s"]
        if step > self.start:
            rate = (step - self.start) * self.tokens_per_step / seconds
            parts.append(f"{rate:,.0f} tokens/s including validation and checkpoints")
        if self.last_loss is not None:
            parts.append(f"training loss {self.last_loss:.4f}")
        if self.last_validation is not None:
            loss = self.last_validation
            parts.append(f"validation loss {loss:.4f}{self._bits(loss)}")
        if peak := peak_memory():
            parts.append(f"peak memory {peak / 1e6:,.0f} MB")
        return ", ".join(parts)

    def end(self, step: int, finished: bool, model: str) -> None:
        """The run is over, or has been stopped, and its model is written."""

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _bits(self, loss: float) -> str:
        if not self.bytes_per_token:
            return ""
        return f" ({bits_per_byte(loss, self.bytes_per_token):.4f} bits per byte)"

    def _line(self, text: str) -> None:
        with self._above_the_bar():
            say(text)

    @contextmanager
    def _above_the_bar(self) -> Iterator[None]:
        """Take the bar away while something is printed."""
        if self.bar is not None:
            self.bar.clear()
        yield
        if self.bar is not None:
            self.bar.refresh()


class JsonLines(Progress):
    """Events as JSON objects, a line each, on stdout; if it is closed, training continues.

    event: begin, update, validation, sample, saved or end
    """

    def begin(self, step: int) -> None:
        super().begin(step)
        self.close()
        self.bar = None
        self._event("begin", step, steps=self.steps, tokens_per_step=self.tokens_per_step)

    def update(self, update: Update) -> None:
        self.last_loss = update.loss
        figures = {"loss": update.loss, "norm": update.norm, "learning_rate": update.rate}
        self._event("update", update.done, **figures, skipped=update.skipped)

    def validation(self, step: int, loss: float) -> None:
        self.last_validation = loss
        size = self.bytes_per_token
        bits = bits_per_byte(loss, size) if size else None
        self._event("validation", step, loss=loss, bits_per_byte=bits)

    def sample(self, step: int, tokens: list[int]) -> None:
        text = self.tokenizer.decode(tokens).decode("utf-8", "replace") if self.tokenizer else None
        self._event("sample", step, ids=tokens, text=text)

    def saved(self, step: int, path: str) -> None:
        self._event("saved", step, path=path)

    def end(self, step: int, finished: bool, model: str) -> None:
        loss, size = self.last_validation, self.bytes_per_token
        self._event(
            "end",
            step,
            finished=finished,
            model=model,
            seconds=time.perf_counter() - self.began,
            training_loss=self.last_loss,
            validation_loss=loss,
            bits_per_byte=bits_per_byte(loss, size) if size and loss is not None else None,
        )

    def _event(self, name: str, step: int, **fields: object) -> None:
        line = json.dumps({"event": name, "step": step, **fields})
        with suppress(BrokenPipeError, PyLLM2Error):
            Output().write_raw(line.encode() + b"\n")


def _bar(start: int, steps: int) -> Any:
    """A progress bar, if stderr is a terminal and tqdm is installed; else None."""
    if not is_terminal(sys.stderr):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            """Write a line over the last one, erased by the terminal.

            tqdm erases it with blanks; in a terminal that is narrower by now they wrap.
            """

            def write(line: str) -> None:
                file.write(f"\r{ERASE}{line}")
                file.flush()

            return write

    bar_format = "{n_fmt}/{total_fmt} {bar} {elapsed}<{remaining} | {desc}"
    kind = tqdm if os.environ.get("TERM") == "dumb" else Bar
    return kind(total=steps, initial=start, dynamic_ncols=True, bar_format=bar_format)


def peak_memory() -> int:
    """The peak resident memory of this process in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
