"""How a class label is written outside the estimator: one text per label, the same everywhere."""

from typing import Any


def label_text(value: Any) -> str:
    """Return the text of a class label: `Yes`, `1`, `True`.

    A whole number read as a float loses its `.0`: the label is the same one. Scalars of numpy count as Python's.
    """
    item = getattr(value, "item", None)
    if callable(item):
        value = item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
