#!python -I
"""The installed `conch`. It runs isolated: PYTHON... variables are meant for the command that conch runs.

Installers may drop the `-I` of the first line. Then this file runs itself again, isolated, if such a variable is set,
and restores its first line if it has the right to: with a broken PYTHONHOME, Python without `-I` fails before it reads
any file.
"""

import os
import sys


def _complete_first_line() -> None:
    path = os.path.realpath(__file__)
    try:
        with open(path, "rb") as file:
            first, rest = file.readline(), file.read()
            found = os.fstat(file.fileno())
        if first != b"#!" + os.fsencode(sys.executable) + b"\n" or found.st_uid != os.geteuid():
            return
        new = f"{path}.{os.getpid()}"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, found.st_mode & 0o777), "wb") as file:
            os.fchmod(file.fileno(), found.st_mode & 0o777)
            file.write(first[:-1] + b" -I\n" + rest)
        os.replace(new, path)
    except OSError:
        pass  # not writable by us: then it runs itself again each time


def _isolate() -> None:
    _complete_first_line()
    if any(name.startswith("PYTHON") for name in os.environ):
        with open("/proc/self/environ", "rb") as file:
            # not os.environ: Python may have added to it
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if entry.find(b"=") > 0]
        arguments = [sys.executable, "-I", __file__, *sys.argv[1:]]
        os.execve(sys.executable, arguments, {name: value for name, _, value in reversed(pairs)})
    del sys.path[0]  # the directory of this file


if __name__ == "__main__":
    try:
        if not sys.flags.isolated:
            _isolate()
        try:
            import conch  # noqa: F401 - only to see whether it is found
        except ModuleNotFoundError:
            import site  # it may be installed for this user only, where an isolated Python does not search

            site.addsitedir(site.getusersitepackages())
        from conch.plain_signal import let_ctrl_c_kill

        let_ctrl_c_kill()  # now: it must not end the imports below with a traceback
        from conch.cli.main import main
    except BaseException as error:
        if os.environ.get("CONCH_DEBUG") == "1":
            sys.excepthook(type(error), error, error.__traceback__)
        os.write(2, f"conch: cannot start ({type(error).__name__}: {error}): is the installation complete?\n".encode())
        os._exit(71)
    main()
