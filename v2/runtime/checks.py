"""Values that a caller hands over.

Contract: what is not what it must be raises a `ValueError` that names the value. Knows no numpy.
"""

import operator
from typing import Any

LARGEST_INT = 2**31 - 1  # of a count
MAX_SEED = 2**63 - 1  # of torch and Gymnasium


def whole_number(value: Any, least: int, most: int, name: str, hint: str = "") -> int:
    """Return an integer of Python, numpy or torch as one of Python.

    Raises:
        ValueError: anything else, a float or a boolean too, or out of range.
    """
    try:
        number = least - 1 if "bool" in type(value).__name__ else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(
            f"{name} must be an integer from {least} to {most}{hint}, got {value!r}"
        )
    return number
