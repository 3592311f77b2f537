"""The gradients of `weight_grad_stats`, with their square norms in a tensor of the caller's."""
