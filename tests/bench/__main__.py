"""Run the measurements that are named, or all."""

import sys
from importlib import import_module

GROUPS = ("holds", "cron")

if __name__ == "__main__":
    for group in sys.argv[1:] or GROUPS:
        import_module(f"tests.bench.{group}").main()
