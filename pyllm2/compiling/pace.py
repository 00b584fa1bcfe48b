"""The number of threads from call to call, by measuring: what helps on an idle machine may stall
on a busy one, where threads that work together wait for whichever has no processor.
"""

from __future__ import annotations

from collections.abc import Collection

BUDGET = 0.005  # share of the time that trials of other numbers may cost
HORIZON = 0.1  # seconds that a mean looks back, but at least FEWEST and at most MOST calls
FEWEST, MOST = 4, 256
BLOCK = 0.002  # seconds of calls that are looked at together: looking at each would take too long
ENOUGH = 0.01  # seconds, and FEWEST calls, that a trial must last before it convinces
PATIENCE = 3.0  # seconds, and MOST calls: the longest time between trials, whatever they cost
CHANGED = 0.6, 1.5  # a mean outside these multiples shows that the machine is another one now


class Pace:
    """Chooses how many threads the next call of the same work uses.

    The results of a call must not depend on the number. Ask for `threads`, and then tell `record`
    how long the call took:

        began = perf_counter()
        work(pace.threads)
        pace.record(perf_counter() - began)

    It begins with the largest number, `most`. Now and then it tries another one: a trial ends at
    once if its calls take longer on average than the latest ones with the current number, and
    otherwise, when it has lasted long enough, replaces that. The next trial waits until the time
    that this one has cost is at most BUDGET of all time, though not for ever, or until calls take
    much more or less time than before.

    others: the numbers to try (None: one, half of the threads, all but one)
    """

    def __init__(self, most: int, others: Collection[int] | None = None) -> None:
        self.most = self.current = self.threads = most
        others = {1, most // 2, most - 1} if others is None else others
        self._due = dict.fromkeys(sorted({*others} - {0, most}), 0.0)  # when `_spent` is so much
        self._spent = 0.0  # seconds, of all calls
        self._seconds, self._calls, self._limit = 0.0, -1, 0.0  # of a block, or of a trial
        self._waking = 0.0  # seconds of the first call of a trial, if that does not count
        self._mean = 0.0  # seconds of a call with the current number
        self._mean_at_trial = 0.0

    def record(self, seconds: float) -> None:
        """Take note of a call with `threads` threads, and choose anew."""
        self._calls += 1
        self._seconds += seconds
        if self._seconds >= self._limit:
            self._look()

    def _look(self) -> None:
        n, total = self._calls, self._seconds
        if n == 0:  # the first call of all, or of a trial: threads had to start or to wake up
            self._spent += total
            self._seconds, self._waking = 0.0, total
        elif self.threads == self.current:
            self._end_block(n, total)
        elif total >= n * self._mean:
            self._spent += total
            cost = max(total - n * self._mean, self._mean) + self._waking
            patience = PATIENCE + MOST * self._mean
            pause = min(cost / BUDGET, patience) * len(self._due)
            self._due[self.threads] = self._spent + pause
            self._begin(self.current)
        elif n >= FEWEST and total >= ENOUGH:
            self._spent += total
            del self._due[self.threads]
            self._due[self.current] = self._spent + self._mean / BUDGET
            self.current, self._mean = self.threads, total / n
            self._mean_at_trial = self._mean
            self._begin(self.current)

    def _end_block(self, n: int, total: float) -> None:
        self._spent += total
        if self._mean == 0:
            self._mean = self._mean_at_trial = total / n
        window = min(max(HORIZON / self._mean, FEWEST), MOST)
        self._mean += (total / n - self._mean) * min(1, n / window)
        self._begin(self.current)
        if not self._due:
            return
        low, high = CHANGED
        changed = not low <= self._mean / self._mean_at_trial <= high
        threads = min(self._due, key=self._due.__getitem__)
        if changed or self._due[threads] <= self._spent:
            self._mean_at_trial = self._mean
            self._begin(threads)

    def _begin(self, threads: int) -> None:
        """Begin a block or a trial."""
        # The first call of a trial does not count if its threads may have to wake up.
        self._calls = -1 if threads > self.threads and threads != self.current else 0
        self._seconds, self._waking, self.threads = 0.0, 0.0, threads
        self._limit = BLOCK if threads == self.current else 0.0
