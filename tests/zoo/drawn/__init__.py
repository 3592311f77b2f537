"""Programs drawn at random: models, losses and training loops, each judged by a float64 loop over samples.

| file | what is inside |
|---|---|
| `model.py` | a model as a list of operations, each with a seed; where samples lie in what it computes |
| `shapes.py` | operations without parameters |
| `whole.py` | operations on the dimension of the samples that leave each to itself |
| `uses.py`, `layers.py` | operations that read parameters |
| `mixing.py` | operations through which samples meet |
| `losses.py` | endings: losses, inside the model or outside, and what it gives back |
| `loops.py` | training loops |
| `programs.py` | drawing, judging, making failures smaller |

Sample i has what `torch.autograd.grad` gives of its part of the whole batch's loss.
Whether samples meet is found by changing one, and looking whether the parts of the others change. A new operation is a
function with a decorator.
"""

from .programs import Draft, alike, judged, smallest, with_sizes_apart

__all__ = ["Draft", "alike", "judged", "smallest", "with_sizes_apart"]
