"""Damaged images of a set: what stands in for them, and how many may be."""

import logging

import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data.files import FileImages

log = logging.getLogger("vaegan")

_NAMED = 10  # damaged files that are named in the log
_NAMED_AT_ONCE = 5  # and in an error


class Substitutes:
    """Decodes a set whose damaged images are replaced by others, up to a limit.

    For the image of a row that cannot be read or decoded stands that of the next row that can, the first after the
    last: a function of the row and the files, whatever the epoch, the process and the storage. Label and augmentation
    stay those of the row; in a set that lies sorted by class, the next image is mostly of the same one.

    form: image_size, channels and fit. limit: the share of the set's images, 0 ... 1, that may be damaged.
    """

    def __init__(self, source: FileImages, form: tuple[int, int, str], limit: float):
        self.found: dict[int, str] = {}
        """Damaged rows that this process has come upon, each with what is wrong, in the order of finding."""
        self._source, self._form, self._limit = source, form, limit
        self._most = int(limit * len(source) + 1e-9)  # 0.29 * 100 is a little less than 29
        self._told: dict[int, str] = {}

    def decode(self, rows) -> Tensor:
        """uint8 (B, C, H, W) of these rows. Zeros once more images are damaged than may be, which `report` raises.

        Raises ConfigError if none of the set can be decoded.
        """
        while len(self.found) <= self._most:
            wanted = [self._standing_in(row) for row in rows]
            try:
                return self._source.images(wanted, *self._form)
            except ConfigError:
                if not self._search(wanted):
                    raise
        self._search(rows)  # so that the count is exact when all rows have been asked for
        image_size, channels, _ = self._form
        return torch.zeros(len(rows), channels, image_size, image_size, dtype=torch.uint8)

    def report(self, found: dict[int, str]) -> None:
        """Count damaged rows, which other processes may have found, and name new ones in the log, once each.

        Raises ConfigError if they are more than the limit allows.
        """
        for row in sorted(found.keys() - self._told.keys()):
            self._told[row] = found[row]
            if len(self._told) <= min(_NAMED, self._most):
                log.warning("another image stands in for a damaged one (%d, of at most %d in %d): %s",
                            len(self._told), self._most, len(self._source), found[row])  # fmt: skip
                if len(self._told) == _NAMED:
                    log.warning("further ones are not named here: scripts/check_data.py names all damaged images")
        if len(self._told) > self._most:
            raise ConfigError(self._too_many())

    def _standing_in(self, row: int) -> int:
        """The row itself or the next one that is not known to be damaged."""
        if len(self.found) == len(self._source):
            first = next(iter(self.found.values()))
            raise ConfigError(f"{self._source.where} has no image that can be decoded: {first}")
        while row in self.found:
            row = (row + 1) % len(self._source)
        return row

    def _search(self, rows) -> bool:
        """Decode these rows one by one; whether any is damaged."""
        damaged = False
        for row in dict.fromkeys(rows):
            try:
                if row not in self.found:
                    self._source.native(row)
            except ConfigError as error:
                self.found[row] = str(error)
            damaged |= row in self.found
        return damaged

    def _too_many(self) -> str:
        names = [self._source.path(row).removeprefix(f"{self._source.where}/") for row in sorted(self._told)]
        more = f" and {len(names) - _NAMED_AT_ONCE} more" if len(names) > _NAMED_AT_ONCE else ""
        return (
            f"{self._source.where}: {len(names)} of {len(self._source)} images are damaged, and data.damaged_limit "
            f"{self._limit:g} allows {self._most}: {', '.join(names[:_NAMED_AT_ONCE])}{more} "
            "(scripts/check_data.py names all and says what is wrong; restore or remove them, or raise the limit)"
        )
