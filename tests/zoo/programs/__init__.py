"""Programs by kind, as people write them."""

from . import (
    adapters,
    batches,
    contrast,
    densities,
    functions,
    graphs,
    hooks,
    in_place,
    layers,
    losses,
    newer,
    one_by_one,
    passes,
    places,
    practice,
    routing,
    sizes,
    spreads,
    uses,
)

_MODULES = (
    uses,
    losses,
    newer,
    one_by_one,
    passes,
    batches,
    sizes,
    layers,
    adapters,
    functions,
    graphs,
    hooks,
    in_place,
    routing,
    practice,
    densities,
    contrast,
    places,
    spreads,
)
ALL = {
    f"{kind}: {name}": program
    for module in _MODULES
    for kind, programs in module.PROGRAMS.items()
    for name, program in programs.items()
}
