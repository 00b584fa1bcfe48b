"""The curves of main.log as a picture."""

from __future__ import annotations

import importlib.util
import os

from pyllm2.errors import BackendError, FileError
from pyllm2.formats.writer import atomic_write
from pyllm2.training.log import read_log


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def require_plot() -> None:
    """Raises BackendError without matplotlib."""
    if not can_plot():
        raise BackendError("a plot needs the matplotlib package: pip install 'pyllm2[train]'")


def plot_log(log: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Training and validation loss over steps; the ending of `path` says the kind of picture.

    Raises FileError, BackendError.
    """
    require_plot()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    streams = read_log(log)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for stream, label, style in (("trl", "training", "-"), ("tel", "validation", "o-")):
        if streams[stream]:
            axes.plot(
                list(streams[stream]), list(streams[stream].values()), style, ms=3, label=label
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.legend()
    figure.tight_layout()
    kind = os.path.splitext(path)[1].lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise FileError(path, f"a picture of kind {kind!r} is not supported: try .png or .svg")
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)
    pyplot.close(figure)
