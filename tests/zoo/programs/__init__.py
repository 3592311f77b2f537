"""Programs by kind, as people write them."""

from . import adapters, batches, functions, in_place, layers, losses, passes, practice, routing, sizes, uses

ALL = {
    f"{kind}: {name}": program
    for module in (uses, losses, passes, batches, sizes, layers, adapters, functions, in_place, routing, practice)
    for kind, programs in module.PROGRAMS.items()
    for name, program in programs.items()
}
