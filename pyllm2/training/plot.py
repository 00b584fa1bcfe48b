"""Loss curves of main.log as an image."""

from __future__ import annotations

import importlib.util
import io
import os
from typing import Any

from pyllm2.errors import BackendError, FileError
from pyllm2.formats.writer import atomic_write
from pyllm2.training.bits import bits_per_byte
from pyllm2.training.log import read_log


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def require_plot() -> None:
    """Raises BackendError without matplotlib."""
    if not can_plot():
        raise BackendError("a plot needs the matplotlib package: pip install matplotlib")


def plot_log(
    log: str | os.PathLike[str],
    path: str | os.PathLike[str],
    bytes_per_token: float | None = None,
) -> None:
    """Plot training and validation loss against steps; the suffix of `path` is the image format.

    bytes_per_token: if it is known, a second axis shows bits per byte.

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
    axes.set_ylabel("loss (nats per token)")
    if bytes_per_token:
        factor = bits_per_byte(1.0, bytes_per_token)
        there: Any = lambda y: y * factor  # noqa: E731
        back: Any = lambda y: y / factor  # noqa: E731
        second = axes.secondary_yaxis("right", functions=(there, back))
        second.set_ylabel("bits per byte")
    axes.legend()
    figure.tight_layout()
    save_figure(figure, path)
    pyplot.close(figure)


def image_format(path: str | os.PathLike[str]) -> str:
    """The image format that the suffix of `path` names; png without one. Raises FileError."""
    from matplotlib.backend_bases import FigureCanvasBase

    kind = os.path.splitext(path)[1].lstrip(".").lower() or "png"
    if kind not in FigureCanvasBase.filetypes:
        raise FileError(path, f"image format {kind!r} is not supported: try .png or .svg")
    return kind


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure of matplotlib in the format of `image_format`. Raises FileError."""
    kind, image = image_format(path), io.BytesIO()  # some formats need a file that can seek
    figure.savefig(image, format=kind)
    with atomic_write(path) as file:
        file.write(image.getvalue())
