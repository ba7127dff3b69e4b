#!python -I
"""`conch` as installed: isolated, because PYTHON... variables are for the command that conch runs, and not for conch.

Installers may drop what follows the interpreter in the first line. Then this file runs itself once more, isolated,
where such a variable is set, and completes its own first line where it may: a broken PYTHONHOME stops any other Python
before it reads a file.
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
        pass  # not ours to write: it runs itself once more each time


def _isolate() -> None:
    _complete_first_line()
    if any(name.startswith("PYTHON") for name in os.environ):
        with open("/proc/self/environ", "rb") as file:
            # not os.environ, to which Python may have added
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if entry.find(b"=") > 0]
        arguments = [sys.executable, "-I", __file__, *sys.argv[1:]]
        os.execve(sys.executable, arguments, {name: value for name, _, value in reversed(pairs)})
    del sys.path[0]  # where this file is


if __name__ == "__main__":
    try:
        if not sys.flags.isolated:
            _isolate()
        try:
            import conch  # noqa: F401 - whether it is found
        except ModuleNotFoundError:
            import site  # installed for this user alone: isolated, Python does not look there

            site.addsitedir(site.getusersitepackages())
        from conch.cli.main import main
    except BaseException as error:
        if os.environ.get("CONCH_DEBUG") == "1":
            sys.excepthook(type(error), error, error.__traceback__)
        os.write(2, f"conch: cannot start ({type(error).__name__}: {error}): is it installed whole?\n".encode())
        os._exit(71)
    main()
