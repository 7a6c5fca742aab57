"""The loss curve as a picture, where matplotlib is installed."""

import csv
from pathlib import Path

import numpy as np


def read_columns(path, *names):
    """Columns of a CSV file as lists of floats; rows that are not whole are left out.  Missing file: empty lists."""
    columns = [[] for _ in names]
    if not Path(path).exists():
        return columns
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                values = [float(row[name]) for name in names]
            except (TypeError, ValueError, KeyError):
                continue
            for column, value in zip(columns, values):
                column.append(value)
    return columns


def running_mean(values, width):
    """Mean of the last `width` values at each place, fewer at the start; what is not finite is passed over."""
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / np.maximum(1, counts[ends] - counts[starts])


def plot_loss(loss_csv, png, val_csv=None, title="training loss"):
    """Draw the loss of every step, its running mean and the validation loss.

    loss_csv: with columns step and loss.  png: the picture to write.  val_csv: with columns step and loss.
    Returns True, or False where matplotlib is not installed or there is nothing to draw.  Raises OSError with the path.
    """
    steps, losses = read_columns(loss_csv, "step", "loss")
    if not steps:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    from .atomic import atomic_write

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy (nats per token)", title=title)
    axes.plot(steps, losses, color="#b8cfe6", linewidth=0.8, label="each step")
    axes.plot(
        steps, running_mean(losses, max(1, len(losses) // 50)), color="#1f5fa8", linewidth=1.6, label="running mean"
    )
    val_steps, val_losses = read_columns(val_csv, "step", "loss") if val_csv else ([], [])
    if val_steps:
        axes.plot(val_steps, val_losses, "o-", color="#c9542d", markersize=3, linewidth=1.2, label="held out")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(png) as file:
        figure.savefig(file, format="png", dpi=100)
    return True
