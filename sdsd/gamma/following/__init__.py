from typing import NamedTuple
import types, torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
class Track(NamedTuple):
    axis: int
    outer: int = 1
    inner: int = 1
class Mixed(NamedTuple):
    reason: str
def track_of(t): return t.__dict__.get("_sdsd_track") if isinstance(t, Tensor) and t.__dict__ else None
def set_track(t, track):
    if track is None: t.__dict__.pop("_sdsd_track", None)
    else: t._sdsd_track = track
def arrange(x, track, n, features):
    s = x.unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return s.reshape(n, -1, *x.shape[x.ndim - features:])
COMPOSITE = set()
def body(f):
    g = dict(f.__globals__); 
    for k in ("has_torch_function","has_torch_function_unary","has_torch_function_variadic"): g[k]=lambda *a: False
    return types.FunctionType(f.__code__, g, f.__name__, f.__defaults__, f.__closure__)
def follow(func, args, kwargs, out, n):
    name = getattr(func, "__name__", "")
    ins = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    tr = [(t, track_of(t)) for t in ins if track_of(t) is not None]
    outs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    m = next((t for _, t in tr if isinstance(t, Mixed)), None)
    for o in outs:
        if m: set_track(o, m); continue
        x, t = tr[0]
        if name in ("linear","layer_norm","relu","tanh","gelu","rms_norm","prelu","dropout","conv1d","conv2d","group_norm","softmax"): set_track(o, t)
        elif name in ("chunk","split"): set_track(o, t)
        elif name in ("embedding",): set_track(o, t)
        elif name=="mean" and t.axis not in ([a % x.ndim for a in (args[1] if isinstance(args[1],(tuple,list)) else [args[1]])] if len(args)>1 else range(x.ndim)): set_track(o, t)
        elif name in ("scaled_dot_product_attention",): set_track(o,t)
        elif o.shape == torch.broadcast_shapes(*[i.shape for i in ins]): 
            ax = {tt.axis - xx.ndim for xx, tt in tr}
            set_track(o, Track(o.ndim + ax.pop(), t.outer, t.inner) if len(ax)==1 else Mixed(name))
        else: set_track(o, Mixed(f"torch's {name}"))
