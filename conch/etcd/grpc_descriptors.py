"""Makes `import etcd3` work with any current protobuf.

The package carries modules that an old protoc generated, which protobuf 4 and later refuse to run. They hold the
schema as a serialized descriptor, though, and the installed protobuf builds the same messages from that.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from types import CodeType, ModuleType

from conch.static_typing import Any, Sequence

_PACKAGE = "etcd3.etcdrpc."
# rpc_pb2 refers to the messages of the other two
_NEEDS = {"kv_pb2": (), "auth_pb2": (), "rpc_pb2": ("kv_pb2", "auth_pb2")}


class _Builder(Loader):
    """Builds a generated module's messages without running it."""

    def __init__(self, name: str, source: SourceFileLoader) -> None:
        self._name = name
        self._source = source

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002 - the loader protocol
        """Leave it to Python."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Add the schema to protobuf's pool, then the message classes to the module."""
        from importlib import import_module

        from google.protobuf import descriptor_pool
        from google.protobuf.internal import builder

        for other in _NEEDS[self._name]:
            import_module(_PACKAGE + other)
        code = self._source.get_code(module.__name__)
        if not isinstance(code, CodeType):
            raise ImportError(f"cannot read the schema in {self._source.path}")
        schema = max((c for c in code.co_consts if isinstance(c, str | bytes)), key=len)
        data = schema.encode("latin-1") if isinstance(schema, str) else schema
        pool: Any = descriptor_pool.Default()
        descriptor = pool.AddSerializedFile(data)
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Only the three generated modules are ours."""
        name = fullname.removeprefix(_PACKAGE)
        if name == fullname or name not in _NEEDS:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or not isinstance(found.loader, SourceFileLoader):
            return None
        return spec_from_loader(fullname, _Builder(name, found.loader), origin=found.origin)


def install() -> None:
    """Call before the first `import etcd3`; more calls do nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
