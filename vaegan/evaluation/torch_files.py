"""Looking into files of torch.save before torch.load does, for what it would not survive: bombs, and endless work.

`weights_only=True` keeps it from running what a file names; it still unpacks any archive, and still hashes any key.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

_MOST_DEPTH = 8  # of tuples in tuples; a tensor takes three
_LEGACY_PICKLES = 5  # with which a file of the format before the archives begins; bytes of tensors follow
_MARK = -1


def require_plain(path: Path) -> None:
    """ValueError for an archive that holds more than its own size, which torch.save, not compressing, never writes, and
    for tuples nested deeply, whose hash as a key takes time beyond measure. Other errors if it is no such file."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            for _ in range(_LEGACY_PICKLES):
                _require_shallow(stream)
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("a compressed archive")
        for member in archive.infolist():
            if member.filename.endswith(".pkl"):
                with archive.open(member) as stream:
                    _require_shallow(stream)


def _require_shallow(stream: BinaryIO) -> None:
    """Follow the stack of a pickle, of which only the depth of each tuple is kept; nothing is made of it."""
    stack: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "MARK":
            stack.append(_MARK)
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "DUP":
            stack.append(stack[-1])
        else:
            parts = _taken(stack, opcode.stack_before)
            depth = 1 + max(parts, default=0) if "TUPLE" in opcode.name else 0
            if depth > _MOST_DEPTH:
                raise ValueError(f"tuples nested more than {_MOST_DEPTH} deep")
            stack += [depth] * len(opcode.stack_after)


def _taken(stack: list[int], wanted: list[pickletools.StackObject]) -> list[int]:
    """Take what an operation takes off the stack."""
    parts = []
    for kind in reversed(wanted):
        if kind is pickletools.stackslice:
            while stack[-1] != _MARK:
                parts.append(stack.pop())
        else:
            parts.append(stack.pop())
    return parts
