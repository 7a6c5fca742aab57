"""python bench/train.py ...: `rwkvtune bench train` with the same arguments."""

import sys

from rwkvtune.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("bench", ["train", *sys.argv[1:]]))
