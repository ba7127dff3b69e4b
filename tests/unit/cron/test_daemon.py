"""What conchd's keeper does about runs that outlived a dead conchd."""

import pytest

from conch.core import procfs
from conch.core.cgroup import Cgroup
from conch.cron.daemon import _survivors
from tests.support.cgroups import new_place, sleeper


def test_run_survives_as_long_as_its_cgroup_is_populated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says so, even if it lists no process that we may see."""
    monkeypatch.setattr(Cgroup, "kill", lambda _: None)
    with new_place() as place, sleeper(place.path) as process:
        cgroup = Cgroup(str(place.path))
        assert [entry.pid for entry in _survivors({"cafe"}, [cgroup])] == [process.pid]
        monkeypatch.setattr(Cgroup, "pids", lambda _: set())
        assert _survivors({"cafe"}, [cgroup]) == [procfs.unseen(0, cgroup=cgroup.path)]
        process.kill()
        assert cgroup.wait_until_empty(5)
        assert _survivors({"cafe"}, [cgroup]) == []
