"""Run the measurements that are named, or all."""

import compileall
import sys
from importlib import import_module
from pathlib import Path

import conch

GROUPS = ("holds", "cron")

if __name__ == "__main__":
    # as pip leaves it: what is run from a source tree might be compiled at each start
    compileall.compile_dir(Path(conch.__file__).parent, quiet=1)
    for group in sys.argv[1:] or GROUPS:
        import_module(f"tools.bench.{group}").main()
