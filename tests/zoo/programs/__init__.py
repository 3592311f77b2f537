"""Programs by kind, as people write them."""

from . import batches, layers, losses, passes, sizes, uses

ALL = {
    f"{kind}: {name}": program
    for module in (uses, losses, passes, batches, sizes, layers)
    for kind, programs in module.PROGRAMS.items()
    for name, program in programs.items()
}
