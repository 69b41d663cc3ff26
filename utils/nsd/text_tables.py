"""Tables of text: a header line, cells that must hold whole numbers."""
import csv
import io

from utils.errors import Problem
from utils.nsd import object_keys


def table(content, delimiter, name, todo=object_keys.AGAIN):
    """[{column: text}] of a table with a header line; a short row has None in its last columns."""
    try:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{name} is not a table ({error})", todo) from error


def whole_number(text, what, todo=object_keys.AGAIN):
    """The whole number that a cell holds. Raises Problem, saying `what` it should be, if it holds another thing."""
    try:
        number = float(text)
        if number != int(number) or abs(number) >= 1 << 53:  # beyond, float64 has no whole numbers to tell apart
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(f"{what} is {text!r}, not a whole number", todo) from error
    return int(number)
