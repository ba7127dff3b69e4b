"""The words that type hints are made of, without their cost: nothing asks for their meaning at run time.

`typing` takes a tenth of the time that a whole `conch elect` does. Checkers see the real ones.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
    from typing import dataclass_transform as dataclass_transform
else:

    class _Word:
        def __class_getitem__(cls, _of):
            return cls

    class ClassVar(_Word):
        """See `typing`."""

    class Generic(_Word):
        """See `typing`."""

    class Protocol(_Word):
        """See `typing`."""

    Any = NoReturn = object

    def TypeVar(_name, **_bounds):  # noqa: N802
        """See `typing`."""
        return object

    def dataclass_transform(**_how):
        """See `typing`."""
        return lambda cls: cls
