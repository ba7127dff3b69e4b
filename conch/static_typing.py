"""What type hints need of `typing` and `collections.abc`, as empty stand-ins at run time, when nothing evaluates them.

Those take a tenth of the time that a whole `conch elect` does. Type checkers see the real names.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable as Callable
    from collections.abc import Collection as Collection
    from collections.abc import Iterable as Iterable
    from collections.abc import Iterator as Iterator
    from collections.abc import Mapping as Mapping
    from collections.abc import Sequence as Sequence
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
    from typing import dataclass_transform as dataclass_transform
else:

    class _StandIn:
        def __class_getitem__(cls, _of):
            return cls

    class ClassVar(_StandIn):
        """See `typing`."""

    class Generic(_StandIn):
        """See `typing`."""

    class Protocol(_StandIn):
        """See `typing`."""

    Callable = Collection = Iterable = Iterator = Mapping = Sequence = Protocol
    Any = NoReturn = object

    def TypeVar(_name, **_bounds):  # noqa: N802
        """See `typing`."""
        return object

    def dataclass_transform(**_how):
        """See `typing`."""
        return lambda cls: cls
