"""Runs `conch` as `python -m conch`, isolated from the environment as far as a module can be."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.ignore_environment and any(name.startswith("PYTHON") for name in os.environ):
        # import this very package, even if only the path that is ignored from now on leads to it
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        found = f"import sys; sys.path.insert(0, {home!r}); import conch; del sys.path[0]"
        code = f"{found}; from conch.cli.main import main; main()"
        from conch.core.host import environment

        # not -I: what conch needs may be installed for this user alone
        os.execve(sys.executable, [sys.executable, "-EP", "-c", code, *sys.argv[1:]], environment())
    from conch.cli.main import main

    main()
