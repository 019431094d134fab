"""Images: named sets, folders and archives, decoded, split, augmented and dealt out in batches."""

from vaegan.data.batches import StepLabels, rows_of_step, to_float, training_batches
from vaegan.data.decode import decode_file
from vaegan.data.images import ImageSet, load_data, spread_rows

__all__ = [
    "ImageSet", "StepLabels", "decode_file", "load_data", "rows_of_step", "spread_rows", "to_float", "training_batches",
]  # fmt: skip
