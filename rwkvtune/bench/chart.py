"""The shares of the machine's limits as bars, where matplotlib is installed."""


def draw(tables, path, title):
    """Writes a PNG of each table's share column, a bar per row.  Raises ImportError (matplotlib), ValueError (no shares), OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('--chart needs matplotlib: pip install "rwkvtune[plot]"') from None
    from ..atomic import atomic_write

    bars = [(_label(table, row), row[table.share]) for table in tables if table.share for row in table.rows if row.get(table.share) is not None]
    if not bars:
        raise ValueError("--chart: none of the measured subjects has a limit to be drawn beside; train, prefill and decode do")
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="share of the machine's limit measured beside it (%)", title=title)
    names, values = zip(*reversed(bars), strict=True)
    drawn = axes.barh(range(len(bars)), [100 * value for value in values], color="#1f5fa8")
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_yticks(range(len(bars)), names)
    axes.axvline(100, color="#c9542d", linewidth=1)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _label(table, row):
    parts = [row.get(name) for name in ("shape", "precision")] + [f"x {row['streams']}" if row.get("streams", 1) > 1 else None]
    return " ".join([table.title.split(":")[0], *(part for part in parts if part)])
