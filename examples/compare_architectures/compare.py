"""Figure and table of what train.py trained.

    python compare.py log [--png comparison.png] [--run]

Reads log/MODEL/ of each model.  --run first trains them one after the other, with the options of train.py that follow:
python compare.py log --run --preset small --text reference
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from config import MODEL_TYPES

from rwkvtune.atomic import atomic_write
from rwkvtune.plotting import read_columns, running_mean

COLOURS = {"rwkv": "#1f5fa8", "gpt2": "#c9542d", "hybrid": "#4f9a52"}


def read_run(out):
    """dict: steps, losses and tokens_per_second of every step, validation (steps, losses), results (dict or None).

    out: the directory of one model.
    """
    steps, losses, speeds = read_columns(out / "loss.csv", "step", "loss", "tokens_per_second")
    lines = (out / "log.txt").read_text().split("\n") if (out / "log.txt").exists() else []
    rows = [line.split() for line in lines if len(line.split()) == 3 and line.split()[1] == "val"]
    path = out / "results.json"
    return {"steps": steps, "losses": losses, "tokens_per_second": speeds, "val": ([int(row[0]) for row in rows], [float(row[2]) for row in rows]),
            "results": json.loads(path.read_text()) if path.exists() else None}  # fmt: skip


def table(runs):
    """Markdown table of the results of the models that came to their end.

    tokens/s: by the clock in all steps, in the fastest twentieth of them (when other programs left the machine alone), and
    per second of processor core time.  memory: the most the process ever held.
    """
    lines = ["| model | parameters | held-out loss (nats per token) | tokens/s: all / fastest | of a core | memory |", "|---|---|---|---|---|---|"]
    for name, run in runs.items():
        r = run["results"]
        if r:
            fastest = np.percentile(run["tokens_per_second"], 95)
            lines.append(f"| {name} | {r['parameters']:,} | {r['val_loss']:.4f} | {r['tokens_per_second']:,.0f} / {fastest:,.0f} |"
                         f" {r['tokens_per_core_second']:,.0f} | {1024 * r['memory_gb']:,.0f} MiB |")  # fmt: skip
    return "\n".join(lines)


def plot(runs, png):
    """Draws loss and speed of every model into one picture.  Raises ValueError where matplotlib is not installed, OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("drawing needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, speeds = figure.subplots(1, 2, width_ratios=(3, 1))
    for name, run in runs.items():
        curves.plot(run["steps"], running_mean(run["losses"], 20), color=COLOURS[name], linewidth=1, alpha=0.55)
        size = f", {run['results']['parameters']:,} parameters" if run["results"] else ""
        curves.plot(*run["val"], "o-", color=COLOURS[name], markersize=3, linewidth=1.4, label=name + size)
    curves.set(xlabel="step", ylabel="nats per token", title="loss: thin line training (mean of 20), dots held out")
    curves.grid(alpha=0.3)
    curves.legend()
    rates = [run["results"]["tokens_per_core_second"] if run["results"] else np.median(run["tokens_per_second"]) for run in runs.values()]
    bars = speeds.bar(list(runs), rates, color=[COLOURS[name] for name in runs])
    speeds.bar_label(bars, [f"{rate:,.0f}" for rate in rates])
    speeds.set(title="tokens/s of a core", yticks=[], ylim=(0, 1.15 * max(rates)))
    with atomic_write(png) as file:
        figure.savefig(file, format="png", dpi=80)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log_dir", help="directory of the logs, as given to train.py")
    parser.add_argument("--png", default="comparison.png", help="the picture to write; default: comparison.png")
    parser.add_argument("--models", nargs="+", choices=MODEL_TYPES, default=list(MODEL_TYPES), help="default: all")
    parser.add_argument("--run", action="store_true", help="train first; all other options go to train.py")
    args, rest = parser.parse_known_args(arguments)
    if rest and not args.run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for name in args.models if args.run else ():
        train = [sys.executable, str(Path(__file__).with_name("train.py")), "--model", name, "--log_dir", args.log_dir, *rest]
        code = subprocess.run(train).returncode
        if code:
            return code
    runs = {name: read_run(Path(args.log_dir) / name) for name in args.models}
    runs = {name: run for name, run in runs.items() if run["steps"]}
    try:
        if not runs:
            raise ValueError(f"{args.log_dir} holds no run; train first, or add --run")
        print(table(runs))
        plot(runs, args.png)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nfigure: {args.png}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
