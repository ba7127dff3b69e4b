"""shellcheck accepts the scripts; `tests/faults/cluster/test_smoke.py` checks `conch-smoke.sh` as POSIX sh."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", [".ci/run", ".ci/nightly", "tools/etcd-releases"])
def test_script_is_executable_and_passes_shellcheck(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["shellcheck", ROOT / script], check=True)
