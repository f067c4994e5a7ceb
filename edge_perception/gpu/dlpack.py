"""DLPack capsules whose consumer decides when the producer's memory may be reused.

NumPy's own exporter ties memory to a Python object; a frame lease must instead end with the
consumer's last tensor, wherever that is freed. So the structures of DLPack 1.0's unversioned ABI
(``dlpack.h``, ``DLManagedTensor``, which every consumer reads) are laid out here with a deleter
of ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

CPU, CUDA = 1, 2
"""``DLDeviceType``."""
_UNSIGNED_INTEGER = 1  # DLDataTypeCode


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
)

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)


@dataclass(frozen=True)
class _Export:
    managed: _ManagedTensor
    sides: ctypes.Array[ctypes.c_int64]
    on_delete: Callable[[], None]


_exports: dict[int, _Export] = {}
"""What capsules and their consumers still use, by the address of the managed tensor."""


@_Deleter
def _delete(managed: ctypes._Pointer[_ManagedTensor]) -> None:
    export = _exports.pop(ctypes.addressof(managed.contents), None)
    if export is not None:
        export.on_delete()


@_Destructor
def _drop_unconsumed(capsule: int) -> None:
    """Run for every capsule; one that a consumer took was renamed and is the consumer's now."""
    if _is_valid(capsule, b"dltensor"):
        export = _exports.pop(_get_pointer(capsule, b"dltensor"), None)
        if export is not None:
            export.on_delete()


def make_capsule(
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    device: tuple[int, int],
    on_delete: Callable[[], None],
) -> object:
    """Return a ``dltensor`` capsule of uint8 memory.

    Args:
        pointer: address of the first byte, valid until ``on_delete``.
        shape: sides.
        strides: bytes (which are elements) between neighbours along each side.
        device: ``DLDeviceType`` and ordinal.
        on_delete: called once, by the consumer's last tensor or by an unused capsule's end; on
            any thread, possibly from the garbage collector, so it must not block.
    """
    sides = (ctypes.c_int64 * (2 * len(shape)))(*shape, *strides)
    first = ctypes.addressof(sides)
    at = ctypes.POINTER(ctypes.c_int64)
    tensor = _Tensor(
        pointer,
        _Device(*device),
        len(shape),
        _DataType(_UNSIGNED_INTEGER, 8, 1),
        ctypes.cast(first, at),
        ctypes.cast(first + 8 * len(shape), at),
        0,
    )
    managed = _ManagedTensor(tensor, None, _delete)
    address = ctypes.addressof(managed)
    _exports[address] = _Export(managed, sides, on_delete)
    capsule: object = _new_capsule(address, b"dltensor", _drop_unconsumed)
    return capsule
