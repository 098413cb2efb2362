"""How many images a model is given at once: doubled while that fits and pays, halved where memory runs out."""

START = 8
CEILING = {"CPUExecutionProvider": 64}  # beyond it a CPU gains nothing and a kill loses more
DEVICE_CEILING = 512
WORSE = 0.9  # rate against the best so far below which a larger batch has not paid


class Pace:
    """The batch size to use next, in images.

    wanted: a size the user fixed, None to find one. step: the batch a graph takes, of which sizes are multiples.
    """

    def __init__(self, wanted: int | None, provider: str, step: int | None) -> None:
        self._step = step or 1
        self._fixed = wanted is not None
        self._ceiling = wanted or CEILING.get(provider, DEVICE_CEILING)
        self._best = 0.0
        self.size = self._whole(wanted or min(START, self._ceiling))

    @property
    def largest(self) -> int:
        """The most that may be asked for at once."""
        return self._whole(self._ceiling)

    def went(self, count: int, seconds: float) -> None:
        """Note how long a batch took; full ones decide whether the next is larger."""
        if self._fixed or count < self.size or seconds <= 0:
            return
        rate = count / seconds
        if rate < WORSE * self._best and self.size > self._step:
            self._fixed, self.size = True, self._whole(self.size // 2)
            return
        self._best = max(self._best, rate)
        if 2 * self.size <= self._ceiling:
            self.size = self._whole(2 * self.size)

    def too_much(self, count: int) -> None:
        """A batch did not fit into memory: never again that many."""
        self._ceiling = max(1, count // 2)
        self.size = min(self.size, self._whole(self._ceiling))

    def _whole(self, size: int) -> int:
        return max(self._step, size - size % self._step)
