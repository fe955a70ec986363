"""What a prediction is made for, beside the trial: a device and how its memory is handed out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

# What a worker sets as PYTORCH_ALLOC_CONF: segments that grow keep fragments small, and a library
# that sets its own (gptqmodel does) would make points of one run differ.
ALLOCATOR = "expandable_segments:True"


class Target(BaseModel):
    """A device to predict for; without one, only what every device has in common is predicted.

    `device` is an id of the catalogue, `allocator` what PYTORCH_ALLOC_CONF holds, `calibration` a
    file of measured efficiencies, `overheads` one of what processes were seen to hold beside their
    tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str | None = None
    allocator: str = ALLOCATOR
    calibration: str | None = None
    overheads: str | None = None
