"""Lines that random networks are made of, as people write them.

A line is `kinds result attributes : statements`, and goes on in those that are indented; statements are parted by "|",
and the last is what it gives. Kinds of tensors, and of the result ("." for the same): R rows (batch, features), W words
(batch, length, features), S signals (batch, channels, length), P pictures (batch, channels, height, width), I indices
(batch, length).

    H    a tensor of one of the kinds        D    how many neurons it has, as a number
    G    another of the same shape           K    a new number of neurons
    J    another of the same kind            Q    a number that divides D
    C    the dimension of the neurons        V    a bound for the indices             T    the length
    $a   an attribute of the model, made by the statements before ":"
    $a~  a vector of D, laid along the neurons of H
"""

from .layers import ATTENTION, COMPUTED, EACH, LAYERS, LAYOUT, NORMS, PIECES, SEVERAL
from .programs import HOSTILE, PROGRAMS, SIZES

SECTIONS = {  # how often a step comes from each
    "layers": 34,
    "each": 14,
    "norms": 9,
    "several": 14,
    "pieces": 8,
    "layout": 12,
    "attention": 6,
    "computed weights": 5,
    "sizes": 5,
    "programs": 14,
    "hostile": 6,
}

STEPS = {
    "layers": LAYERS,
    "each": EACH,
    "norms": NORMS,
    "several": SEVERAL,
    "pieces": PIECES,
    "layout": LAYOUT,
    "attention": ATTENTION,
    "computed weights": COMPUTED,
    "sizes": SIZES,
    "programs": PROGRAMS,
    "hostile": HOSTILE,
}
HEADS = {
    "R": "$a = nn.Linear(D, 3) : $a(H)",
    "W": "$a = nn.Linear(D, 3) : $a(H)",
    "S": "$a = nn.Conv1d(D, 2, 1) : $a(H)",
    "P": "$a = nn.Conv2d(D, 2, 1) : $a(H)",
}


def lines_of(section: str) -> list[str]:
    """The lines of a section, each in one piece."""
    joined = STEPS[section].strip().replace("\n    ", " ")
    return joined.splitlines()
