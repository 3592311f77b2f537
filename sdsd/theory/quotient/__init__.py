"""The quotient S/G: which moves of the parameters leave the function alone, and what is left without them.

Many points of parameter space compute one function: neurons can change places, a ReLU neuron's incoming weights can
grow while its outgoing ones shrink, and a norm undoes the scale of what it reads ("Symmetry-Driven Spatial Density"
§2–4 take states up to such moves, S/G). Here

    symmetries          finds the moves in a model, and says what it did not analyse
    horizontal          the part of an update that moves the function; vertical, the part that does not
    canonicalize        the representative of least norm, neurons in a fixed order
    quotient_gamma      Γ there, the same for every point of an orbit

The orbit is that of the moves analysed, which `symmetries` prints, and Γ of the quotient is a property of that orbit,
not of the function: points that other moves join have other numbers. Among the moves is mixing by invertible matrices
M wherever nothing but linear maps lies between, V W = (V M⁻¹)(M W): adjacent linear layers, values and output and
queries and keys of a head of attention. Left out are, above all, neurons that a ReLU never cuts and rotations of a
stream that only an RMSNorm reads; a report ends with the list.

A gradient of an invariant loss is horizontal already, but its squared norm, and with it Γ, changes along the orbit: a
gradient is long where weights are unbalanced. That is why Γ of the quotient is taken at one representative.

==================  ================================================================================================
`symmetries.py`     `symmetries`: the moves of a model
`projection.py`     `horizontal`, `vertical`: the parts of an update
`canonical.py`      `canonicalize`, `rescale`, `random_representative`: other points of the orbit; `quotient_gamma`
`matching.py`       `match_neurons`: neurons of two layers, or of two models, one to one
`same_function.py`  what a model gives in float64, and whether it gives the same in another order
`channels.py`       neurons while a model runs: what ties them to one another, and what holds them
`walk.py`           the walk over a running model for what can be moved, and its table of rules
`rules_*.py`        the rules: layouts, products, sums, functions, norms
`trace.py`          channels put together to segments, when the model has run
`segments.py`       which axes of which parameters run over the neurons of a segment
`groups.py`         the symmetries these give rise to, and how they act on a point
`mixing.py`         mixing by invertible matrices
`attention.py`      whole heads, and shifts of keys, as far as the model itself lets them be free
`point.py`          parameters and statistics of norms in float64, to be moved
`balance.py`        the point of least norm
`tangents.py`       the span of all tangents, and the projection onto it
==================  ================================================================================================
"""

from .canonical import canonicalize, quotient_gamma, random_representative, rescale
from .matching import ModelMatching, match_neurons
from .projection import horizontal, vertical, vertical_fraction
from .segments import Slice
from .symmetries import Symmetries, example_for, symmetries

__all__ = [
    "ModelMatching",
    "Slice",
    "Symmetries",
    "canonicalize",
    "example_for",
    "horizontal",
    "match_neurons",
    "quotient_gamma",
    "random_representative",
    "rescale",
    "symmetries",
    "vertical",
    "vertical_fraction",
]
