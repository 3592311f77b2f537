"""From tensors to launches. All that a call's shapes decide is settled once, in a plan that one look-up finds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import interpreting
from .._device import DeviceRecord, device_record
from .._launch import NORMS_WIDTH, Launch, kept, on_device
from .._precision import convolutions_may_use_tf32, layers_may_use_tf32
from . import config, layout
from .convolution import LINEAR, Convolution
from .kernel import boxes_kernel, depthwise_kernel, descriptor, finish_kernel, pointed
from .layout import Copy, Layout
from .parts import Split, ceil_divide, plan_split, strides_by_name
from .sums import Sums


class Fused(NamedTuple):
    """A call with everything settled but its tensors."""

    main: Launch
    finish: Launch
    tensors: tuple[Any, Any, Any, Any]
    """Descriptors of inputs and their low parts, output gradients and their low parts; None where pointers serve."""
    copies: tuple[Copy | None, Copy | None]
    split: Split | None
    shares: int
    ranges: int
    elements: int
    total: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Shape and strides of the weight gradient, or None without one."""
    dtype: torch.dtype
    depthwise: bool
    bias: Sums | None = None

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        scale: Tensor | None = None,
        square_norms: Tensor | None = None,
        row: int = 0,
        bias_row: int = -1,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        device = a.device
        bias_part = bias_total = None
        if self.bias is not None:
            bias_part = torch.empty(self.bias.part, dtype=torch.float32, device=device)
            self.bias.launch(b, None, None, None, None, bias_part)
            bias_total = torch.empty(self.bias.part[2], dtype=self.dtype, device=device)
        first, second = self.copies
        if first is not None:
            a = first.of(a)
        if second is not None:
            b = second.of(b)
        if square_norms is None:
            square_norms = torch.empty((), dtype=torch.float64, device=device)
        squares = square_norms.new_empty(self.shares)
        total = partial = None
        target: Tensor = squares
        if self.total is not None:
            total = target = torch.empty_strided(*self.total, dtype=self.dtype, device=device)
            if self.ranges > 1:
                partial = target = torch.empty(self.ranges, self.elements, dtype=torch.float32, device=device)
        if self.depthwise:
            self.main(a, b, scale, target, squares)
        else:
            parts: tuple[Any, ...] = (a, None, b, None, None, None) if self.split is None else self.split(a, b)
            of_a, of_a_low, of_b, of_b_low = self.tensors
            a, a_low, b, b_low, *factors = parts
            self.main(
                pointed(of_a, a) if of_a is not None else a,
                pointed(of_a_low, a_low) if a_low is not None else None,
                pointed(of_b, b) if of_b is not None else b,
                pointed(of_b_low, b_low) if b_low is not None else None,
                *factors,
                scale,
                target,
                squares,
            )
        self.finish(
            partial, squares, squares if total is None else total, bias_part, bias_total, square_norms, row, bias_row
        )
        return total, bias_total, square_norms


PLANS: dict[tuple[Any, ...], Any] = {}


def launch_fused(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    convolution: Convolution,
    weight_grad: bool,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
) -> tuple[Tensor | None, Tensor]:
    """Weight gradient or None, and square norm (), of inputs and output gradients (N, T, d), (N, C, W) or (N, C, H, W).

    Three dimensions are a linear layer's where `convolution` is LINEAR, and a convolution over one dimension otherwise.
    """
    tf32 = inputs.dtype == torch.float32 and tf32_allowed(convolution)
    key: tuple[Any, ...] = (inputs.shape, inputs.stride(), output_grads.shape, output_grads.stride())
    key += (inputs.dtype, inputs.device, inputs.data_ptr() % 16, output_grads.data_ptr() % 16)
    options = (convolution, weight_grad, dtype, channels_last, max_bytes, tf32)
    key += (*options, None if scale is None else (scale.stride(), scale.dtype, scale.data_ptr() % 16))
    plan = PLANS.get(key)
    if plan is None:
        made = plan_fused(inputs, output_grads, scale, *options, device_record(inputs.device))
        plan = kept(PLANS, key, made)
    total, _, square_norm = on_device(inputs, plan, inputs, output_grads, scale)
    return total, square_norm


def tf32_allowed(convolution: tuple[Any, ...]) -> bool:
    """Whether torch itself may round a float32 product's operands to tf32: by one setting for layers, one for cuDNN."""
    return layers_may_use_tf32() if convolution is LINEAR else convolutions_may_use_tf32()


def plan_fused(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    convolution: Convolution,
    weight_grad: bool,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
    tf32: bool,
    record: DeviceRecord,
    bias: Sums | None = None,
) -> Fused:
    """What is done with tensors like these; `bias`: where the bias' gradient is wanted too, how it is found."""
    linear = convolution is LINEAR
    a = layout.as_layout(inputs, linear)
    b = layout.as_layout(output_grads, linear)
    samples, height, width, channels = a.shape
    _, out_height, out_width, outputs = b.shape
    kernel, stride, dilation = (
        _two(pair, 1) for pair in (convolution.kernel, convolution.stride, convolution.dilation)
    )
    padding = _two(convolution.padding, 0)
    taps, groups = kernel[0] * kernel[1], convolution.groups
    group_d, group_p = channels // groups, outputs // groups
    elements = outputs * group_d * taps
    shape = (outputs, group_d, *(() if linear else convolution.kernel))
    strides = layout.weight_strides(shape, channels_last)
    total_d = strides[1]
    total_tap = 0 if linear else strides[-1]
    most_ranges = max(1, max_bytes // (elements * 4)) if weight_grad else samples
    of_scale = (0, 0, 0, 0) if scale is None else _scale_strides(scale, linear)
    known: dict[str, Any] = {"samples": samples, "height": height, "width": width}
    known |= {"out_height": out_height, "out_width": out_width}
    known |= {"group_d": group_d, "group_p": group_p, "taps": taps, "kernel_w": kernel[1]}
    known |= {"pad_h": padding[0], "pad_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1]}
    known |= {"total_range": elements, "total_p": strides[0], "total_d": total_d, "total_tap": total_tap}
    known |= {"scale_p": of_scale[0], "scale_d": of_scale[1], "scale_h": of_scale[2], "scale_w": of_scale[3]}
    known |= {"WEIGHT_GRAD": weight_grad, "INTERPRET": interpreting()}
    common: dict[str, Any] = {"shares": 0, "elements": elements, "total": (shape, strides) if weight_grad else None}
    common |= {"dtype": dtype, "bias": bias}
    if group_d == 1 and groups > 1:
        return _plan_depthwise(
            a, b, known | {"p": outputs, "stride_h": stride[0], "stride_w": stride[1]}, common, most_ranges, record
        )

    several, sets = _sets(groups, group_d, group_p, record)
    d, p = group_d * several, group_p * several
    flat = groups == 1 and channels < config.FLAT_BELOW and taps > 1
    lane = 16 // (2 if inputs.dtype == torch.float32 else inputs.dtype.itemsize)
    aligned = sets == 1 or (d % lane == 0 and p % lane == 0)
    pointers = flat or not aligned or not config.reads_boxes(record)
    kind = config.DIRECT
    if inputs.dtype == torch.float32 and not pointers:
        kind = config.ONE_TERM if tf32 else config.THREE_TERMS
    candidates = config.tiles(
        record,
        kind,
        itemsize=inputs.dtype.itemsize,
        pointers=pointers,
        flat=flat,
        boxes=not linear,
        narrow=min(d, p) <= 64,
        scaled=scale is not None,
    )
    plan = config.best_plan(
        candidates,
        record,
        samples=samples,
        out_size=(out_height, out_width),
        d=d,
        p=p,
        sets=sets,
        taps=taps,
        flat=flat,
        most_ranges=most_ranges,
    )
    tile, (box_h, box_w) = plan.tile, plan.box

    # One tap without padding reads one phase, so it is a view of every stride-th position.
    viewed = taps == 1 and padding == (0, 0) and not pointers
    strided = not (pointers or viewed) and stride != (1, 1)
    multiples = stride if strided else (1, 1)
    split = first = second = None
    tensors: tuple[Any, Any, Any, Any] = (None, None, None, None)
    if pointers:
        if not flat:
            a, first = layout.adjacent_channels(a, inputs.dtype)
            b, second = layout.adjacent_channels(b, inputs.dtype)
    elif kind == config.DIRECT:
        a, first = layout.described(a, inputs.dtype, inputs.data_ptr(), multiples)
        b, second = layout.described(b, inputs.dtype, output_grads.data_ptr())
    else:
        if height % multiples[0] or width % multiples[1]:
            target = layout.packed(a, inputs.dtype.itemsize, multiples)
            a, first = target, layout.copy_into(target, a, inputs.dtype)
        split, a, b = plan_split(a, b, kind == config.THREE_TERMS, record)
    if not pointers:
        held = inputs.dtype if split is None else torch.float16
        if viewed and stride != (1, 1):
            a, stride = layout.every(a, stride, (out_height, out_width)), (1, 1)
        known["phase_width"] = a.strides[2]
        shape_a, strides_a = layout.phases(a, stride) if strided else (a.shape, a.strides)
        box = (1, box_h, 1, box_w, tile.block_d) if strided else (1, box_h, box_w, tile.block_d)
        of_a = descriptor(shape_a, strides_a, box, held)
        of_b = descriptor(b.shape, b.strides, (1, box_h, box_w, tile.block_p), held)
        tensors = (of_a, of_a, of_b, of_b)
    known |= strides_by_name("a", "nhwc", a.strides if pointers else (0,) * 4)
    known |= strides_by_name("b", "nhwc", b.strides if pointers else (0,) * 4)
    known = {"phase_width": 0} | known
    known |= {"samples_each": plan.samples_each, "d": d, "p": p, "stride_h": stride[0], "stride_w": stride[1]}
    known |= {"POINTERS": pointers, "FLAT": flat, "STRIDED": strided, "MASKED": strided or sets > 1 or several > 1}
    known |= {"SEVERAL": several > 1, "THREE": kind == config.THREE_TERMS}
    known |= {"PRECISION": precision_of(inputs.dtype, record, tf32), "GROUP": 8}
    known |= {"BLOCK_P": tile.block_p, "BLOCK_D": tile.block_d, "BLOCK_H": box_h, "BLOCK_W": box_w}
    main = Launch(
        boxes_kernel, (plan.tiles, plan.ranges, 1), known, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    common["shares"] = plan.tiles * plan.ranges
    finish = finish_launch(common["shares"], plan.ranges if weight_grad else 1, elements, bias)
    return Fused(main, finish, tensors, (first, second), split, ranges=plan.ranges, depthwise=False, **common)


def _two(values: tuple[int, ...], first: int) -> tuple[int, int]:
    """One value for each dimension of space; `first` for the height of a convolution over one dimension."""
    return (first, values[0]) if len(values) == 1 else (values[0], values[1])


def _sets(groups: int, group_d: int, group_p: int, record: DeviceRecord) -> tuple[int, int]:
    """Groups of a set, a divisor of all groups, and sets: as many groups as fit the narrowest tile."""
    wide = (16, 32) if record.family == "interpreted" else (64, 64)
    several = max(1, min(groups, wide[0] // group_p, wide[1] // group_d))
    while groups % several:
        several -= 1
    return several, groups // several


def _scale_strides(scale: Tensor, linear: bool) -> tuple[int, int, int, int]:
    """Along P, C, and the height and width of the kernel."""
    stride = scale.stride()
    return (stride[0], stride[1], 0, 0) if linear else (stride[0], stride[1], *_two(stride[2:], 0))


def precision_of(dtype: torch.dtype, record: DeviceRecord, tf32: bool) -> str:
    """How float32 is multiplied where it is not split. Products of halves are exact and take "ieee".

    tf32x3 keeps float32's digits on the matrix unit. On AMD only one architecture has tf32.
    """
    if dtype != torch.float32 or not record.family.startswith("sm_"):
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


def finish_launch(shares: int, ranges: int, elements: int, bias: Sums | None = None) -> Launch:
    """Adds up shares of the square norm and, if there are several, `ranges` of the weight gradient; ends the bias."""
    together = min(config.MOST_TOGETHER, 1 << (ranges - 1).bit_length())
    block = config.FINISH_BLOCK // together
    blocks = ceil_divide(elements, block) if ranges > 1 else 0
    none = {"samples": 0, "splits": 0, "channels": 0, "BLOCK_N": 1, "BLOCK_C": 1}
    settled = {
        "ranges": ranges,
        "elements": elements,
        "count": shares,
        "width": NORMS_WIDTH,
        "BLOCK": block,
        "RANGES": together,
        "SHARES": config.FINISH_BLOCK,
        "BIAS_BLOCKS": 0 if bias is None else bias.blocks,
        **(none if bias is None else bias.finish),
    }
    return Launch(finish_kernel, (1 + blocks + settled["BIAS_BLOCKS"], 1, 1), settled, num_warps=4)


def _plan_depthwise(
    a: Layout, b: Layout, known: dict[str, Any], common: dict[str, Any], most_ranges: int, record: DeviceRecord
) -> Fused:
    if record.family == "interpreted":
        chosen = config.DEPTHWISE_INTERPRETED
    else:
        last = b.strides[3] == 1
        chosen = config.DEPTHWISE_CHANNELS_LAST if last else config.DEPTHWISE_CHANNELS_FIRST
    programs = ceil_divide(known["p"], chosen.block_p) * known["taps"]
    slots = record.multiprocessors * config.DEPTHWISE_RESIDENT
    each = ceil_divide(known["samples"], max(1, min(known["samples"], slots // programs, most_ranges)))
    ranges = ceil_divide(known["samples"], each)
    known |= strides_by_name("a", "nhwc", a.strides) | strides_by_name("b", "nhwc", b.strides)
    known |= {"samples_each": each, "BLOCK_P": chosen.block_p, "BLOCK_T": chosen.block_t}
    common["shares"] = programs * ranges
    return Fused(
        Launch(depthwise_kernel, (programs, ranges, 1), known, num_warps=chosen.num_warps),
        finish_launch(common["shares"], ranges if common["total"] else 1, common["elements"], common["bias"]),
        (None, None, None, None),
        (None, None),
        None,
        ranges=ranges,
        depthwise=True,
        **common,
    )
