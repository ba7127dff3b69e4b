"""Small immutable values, like frozen dataclasses, at a twentieth of their cost when a program starts."""

from conch.static_typing import Any, ClassVar, TypeVar, dataclass_transform

_Record = TypeVar("_Record", bound="Record")


@dataclass_transform(frozen_default=True)
class Record:
    """A value whose fields are its annotations, in their order; compared and hashed by type and fields."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _field_set: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Collect the fields."""
        own = [
            name
            for name, kind in cls.__annotations__.items()
            if not name.startswith("_") and "ClassVar" not in str(kind) and name not in cls._fields
        ]
        cls._fields = (*cls._fields, *own)
        cls._field_set = frozenset(cls._fields)
        cls.__match_args__ = cls._fields  # type: ignore[misc]
        cls._defaults = {**cls._defaults, **{name: cls.__dict__[name] for name in own if name in cls.__dict__}}

    def __init__(self, *values: Any, **named: Any) -> None:
        """Take the fields by position, in the order of their declaration, or by name."""
        fields = self._fields
        if not named and len(values) == len(fields):
            self.__dict__.update(zip(fields, values, strict=True))
        elif not values and named.keys() == self._field_set:
            self.__dict__.update(named)
        elif len(values) != len(fields):
            if len(values) > len(fields):
                raise TypeError(f"{type(self).__name__} takes {len(fields)} values, not {len(values)}")
            merged = {**self._defaults, **dict(zip(fields, values, strict=False)), **named}
            if merged.keys() != set(fields) or any(name in named for name in fields[: len(values)]):
                odd = sorted(merged.keys() ^ set(fields)) or sorted(named)
                raise TypeError(f"{type(self).__name__}: missing, unknown or repeated fields: {', '.join(odd)}")
            self.__dict__.update(merged)
        else:
            raise TypeError(f"{type(self).__name__}: repeated fields: {', '.join(named)}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: a record never changes."""
        raise AttributeError(f"cannot change {name} of {type(self).__name__}")

    def __delattr__(self, name: str) -> None:
        """Refuse: a record never changes."""
        raise AttributeError(f"cannot delete {name} of {type(self).__name__}")

    def _values(self) -> tuple[Any, ...]:
        values = self.__dict__
        return tuple(values[name] for name in self._fields)

    def __eq__(self, other: object) -> bool:
        """Return whether the other has the same type and equal fields."""
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        """Hash type and fields."""
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        """Return the expression that makes an equal record."""
        shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"


def replace(record: _Record, **changes: Any) -> _Record:
    """Return a copy with other values for these fields."""
    return type(record)(**{**record.__dict__, **changes})


def fields_of(record: Record) -> dict[str, Any]:
    """Return the fields by name, in their order."""
    return {name: record.__dict__[name] for name in record._fields}
