"""Enumerations like those of `enum`, which takes a tenth of the time of a whole `conch elect` to import.

Type checkers see the real `Enum`. At run time a member is known by its identity, and has a name and a value.
"""

from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enum import Enum as Enum
else:

    class _EnumType(type):
        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __contains__(cls, value):
            return isinstance(value, cls)

    class Enum(metaclass=_EnumType):
        """The base of enumerations: each public attribute becomes a member, in the order of the class's text."""

        def __init_subclass__(cls):
            """Make the members."""
            cls._members = {}
            for name, value in [(name, value) for name, value in vars(cls).items() if not name.startswith("_")]:
                member = object.__new__(cls)
                member.name, member.value = name, value
                setattr(cls, name, member)
                cls._members[value] = member

        def __new__(cls, value):
            """Return the member of this value; `ValueError` if there is none."""
            try:
                return cls._members[value]
            except KeyError:
                raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

        def __repr__(self):
            """Show name and value."""
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"
