"""The one way in which composing records can fail."""


class StructureError(Exception):
    """Records are not alike in the way that composing them needs."""
