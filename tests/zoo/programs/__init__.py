"""Programs by kind, as people write them."""

from . import batches, layers, losses, passes, practice, sizes, uses

ALL = {
    f"{kind}: {name}": program
    for module in (uses, losses, passes, batches, sizes, layers, practice)
    for kind, programs in module.PROGRAMS.items()
    for name, program in programs.items()
}
