"""What refusals in compiled code say."""

NO_SAMPLE = "no sample is in what it is applied to, as in a table"
WHAT_TO_DO = (
    "Compile without fullgraph=True, and measured steps run uncompiled; or compile the layers around it, each by "
    "itself (`for layer in model.layers: layer.compile()`), use mode='micro', or leave its parameters out with "
    "parameters=…."
)
