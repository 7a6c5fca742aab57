"""python -m rwkvtune.bench MODULE:FUNCTION JSON: the other end of `timing.in_a_process`."""

import json
import sys
from importlib import import_module

if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    print(json.dumps(getattr(import_module(f"rwkvtune.bench.{module}"), name)(**json.loads(sys.argv[2]))))
