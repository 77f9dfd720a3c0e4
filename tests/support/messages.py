"""Random protobuf messages of any type, written over its descriptor, and damaged ones."""

from collections.abc import Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

INT32, INT64 = 2**31, 2**63
MAX_REPEATED = 3
MAX_DAMAGES = 3
MAX_DEPTH = 4

WORDS = (
    *("a", "b", "c", "base", "nosuch", "fuzz-1", "fuzz-2", "ties.a", "!ties.b", "0", "1"),
    *("a:0.5+b:0.5", "a:-1+c:2", "c:0.0", "a:1e308+a:1e308", "b:nan", "experiment:fuzz-1"),
    *('{"terms": [{"task": "a"}]}', '{"method": "metagpt", "tasks": ["a", "b"], "params": {}}'),
    *("model.layers.0.mlp.down_proj.weight", "latency_s", "tasks.load", "mixes.register", "*"),
)
"""Texts that mean something to the server, somewhere."""

NUMBERS = (0, 1, 2, 3, 4, 8, 16, 100, -1, 128, 129, 511, 512, 513)

Field = st.SearchStrategy[Any]
_INTEGERS: dict[int, Field] = {
    FieldDescriptor.TYPE_INT32: st.integers(-INT32, INT32 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-INT64, INT64 - 1),
}
_FLOATS: Field = st.one_of(st.sampled_from((0.0, 0.1, 0.5, 1.0, 2.0, -1.0)), st.floats())
_TEXTS: Field = st.one_of(
    st.sampled_from(WORDS), st.text(max_size=20), st.text("ab\0\n{}[]:+-.e019", max_size=20)
)
_SCALARS: dict[int, Field] = {
    FieldDescriptor.TYPE_DOUBLE: _FLOATS,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(0, 4), st.integers(-INT32, INT32 - 1)),
    **{kind: st.one_of(st.sampled_from(NUMBERS), integers) for kind, integers in _INTEGERS.items()},
}


def wires(example: Message) -> st.SearchStrategy[bytes]:
    """What may arrive in place of `example`: other messages of its type, itself with other fields
    set too, and either with some bytes changed."""
    others = messages(example.DESCRIPTOR)
    changed = others.map(lambda other: _merged(example, other))
    intact = st.one_of(changed, others).map(lambda message: message.SerializeToString())
    return st.one_of(intact, _damaged(intact))


def messages(descriptor: Descriptor, depth: int = MAX_DEPTH) -> st.SearchStrategy[Message]:
    """Messages of this type: few fields set or many, at most one of each `oneof`."""
    return _drawn(descriptor, depth)


def _merged(example: Message, other: Message) -> Message:
    merged = type(example)()
    merged.CopyFrom(example)
    merged.MergeFrom(other)
    return merged


@st.composite
def _drawn(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in _chosen(draw, descriptor):
        if field.message_type is not None and depth == 0:
            continue
        if field.is_repeated:
            _fill(draw, message, field, depth)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth - 1)))
        else:
            setattr(message, field.name, draw(_SCALARS[field.type]))
    return message


def _chosen(draw: st.DrawFn, descriptor: Descriptor) -> list[FieldDescriptor]:
    """The fields to set. A field of a `oneof` that is set later would clear an earlier one."""
    rivals = [tuple(group.fields) for group in descriptor.oneofs]
    rivals += [(field,) for field in descriptor.fields if field.containing_oneof is None]
    if not rivals:
        return []
    most = draw(st.sampled_from((1, 2, len(rivals))))
    groups = draw(st.lists(st.sampled_from(rivals), max_size=most, unique=True))
    return [draw(st.sampled_from(group)) for group in groups]


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    container = getattr(message, field.name)
    for _ in range(draw(st.integers(0, MAX_REPEATED))):
        if field.message_type is None:
            container.append(draw(_SCALARS[field.type]))
        elif field.message_type.GetOptions().map_entry:
            key, value = (draw(_SCALARS[part.type]) for part in field.message_type.fields)
            container[key] = value
        else:
            container.append(draw(messages(field.message_type, depth - 1)))


Damage = Callable[[st.DrawFn, bytearray, int], None]


def _flip_bit(draw: st.DrawFn, wire: bytearray, at: int) -> None:
    if wire:
        wire[at % len(wire)] ^= 1 << draw(st.integers(0, 7))


def _truncate(draw: st.DrawFn, wire: bytearray, at: int) -> None:
    del wire[at:]


def _insert(draw: st.DrawFn, wire: bytearray, at: int) -> None:
    wire[at:at] = draw(st.binary(min_size=1, max_size=16))


def _repeat(draw: st.DrawFn, wire: bytearray, at: int) -> None:
    wire[at:at] = wire[:at] * draw(st.integers(1, 3))


_DAMAGES: tuple[Damage, ...] = (_flip_bit, _truncate, _insert, _repeat)


@st.composite
def _damaged(draw: st.DrawFn, intact: st.SearchStrategy[bytes]) -> bytes:
    wire = bytearray(draw(intact))
    for _ in range(draw(st.integers(1, MAX_DAMAGES))):
        draw(st.sampled_from(_DAMAGES))(draw, wire, draw(st.integers(0, len(wire))))
    return bytes(wire)
