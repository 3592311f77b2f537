"""Lines of random networks: layers, norms, attention, and what lies between them. `steps.py` says how to read one."""

LAYERS = """
RW .  $a = nn.Linear(D, K) : $a(H)
RW .  $a = nn.Linear(D, K, bias=False) : $a(H).relu()
RW .  $a = nn.Linear(D, K) : F.gelu($a(H))
RW .  $a = nn.Linear(D, D) : H + $a(H)
RW .  $a = nn.Linear(D, D) : $a($a(H).tanh())
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(K, D) : H + $b(F.relu($a(H)))
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, K) ; $c = nn.Linear(K, D) : $c(F.silu($a(H)) * $b(H))
RW .  $a = nn.Linear(D, 2 * K) ; $b = nn.Linear(K, D) : u, v = $a(H).chunk(2, -1) | $b(u * v.sigmoid())
RW .  $a = nn.Sequential(nn.Linear(D, K), nn.ReLU(), nn.Linear(K, K), nn.Tanh()) : $a(H)
RW .  $a = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D)]) : u = H | for layer in $a: u = u + layer(u).relu() | u
RW .  $a = nn.ModuleDict({"one": nn.Linear(D, K), "two": nn.Linear(D, K)}) : $a["one"](H) + $a["two"](H)
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, K) ; $b.weight = $a.weight : $a(H) * $b(H).sigmoid()
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(K, D, bias=False) ; $b.weight = nn.Parameter($a.weight.T) : $b($a(H))
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(7, D) : $a(H)
RW .  $a = nn.Linear(D, K).requires_grad_(False) : $a(H)
RW .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, 2, bias=False) ; $c = nn.Linear(2, K, bias=False) : $a(H) + 0.5 *
    $c($b(H))
RW .  $a = nn.Parameter(torch.empty(K, D)) : F.linear(H, $a)
RW .  $a = nn.Parameter(torch.empty(D, K)) ; $b = nn.Parameter(torch.empty(K)) : H @ $a + $b
RW .  $a = nn.Parameter(torch.empty(K, D)) : H @ $a.T
RW .  $a = nn.Parameter(torch.empty(K, D)) : torch.einsum("...i,oi->...o", H, $a)
RW .  $a = nn.Parameter(torch.empty(2, D, K)) : torch.einsum("...i,gio->...go", H, $a).sum(-2)
RW .  $a = nn.Parameter(torch.empty(2, D, K)) : torch.einsum("...i,gio->...go", H, $a).flatten(-2)
R  .  $a = nn.Bilinear(D, D, K) : $a(H, G)
R  .  $a = nn.Linear(D, K) : torch.func.vmap($a)(H)
W  .  $a = nn.Linear(D, K) : torch.utils.checkpoint.checkpoint($a, H, use_reentrant=False)
W  .  $a = nn.GRU(D, K, batch_first=True) : $a(H)[0]
W  .  $a = nn.LSTM(D, K, batch_first=True) : $a(H)[0]
W  R  $a = nn.LSTM(D, K, batch_first=True) : $a(H)[1][0][-1]
I  W  $a = nn.Embedding(V, K) : $a(H)
I  W  $a = nn.Embedding(V, K, padding_idx=0) ; $b = nn.Embedding(16, K) : $a(H) + $b(torch.arange(H.shape[1]))
I  W  $a = nn.Embedding(V, K) ; $b = nn.Parameter(torch.empty(1, 16, K)) : $a(H) + $b[:, :H.shape[1]]
I  R  $a = nn.EmbeddingBag(V, K) : $a(H)
I  W  $a = nn.Embedding(V, K) ; $b = nn.Linear(K, K) : u = $b($a(H)) | u + u @ $a.weight.T @ $a.weight
S  .  $a = nn.Conv1d(D, K, 3, padding=1) : $a(H)
S  .  $a = nn.Conv1d(D, K, 1) ; $b = nn.BatchNorm1d(K) : F.relu($b($a(H)))
S  .  $a = nn.Conv1d(D, K, 2, stride=2) : $a(H).relu()
S  .  $a = nn.Conv1d(D, D, 3, padding=1, groups=D) : $a(H)
S  .  $a = nn.Conv1d(D, 2 * K, 1) ; $b = nn.Conv1d(K, D, 1) : H + $b(F.glu($a(H), 1))
S  .  $a = nn.ConvTranspose1d(D, K, 2, stride=2) : $a(H)
P  .  $a = nn.Conv2d(D, K, 3, padding=1) : $a(H)
P  .  $a = nn.Conv2d(D, K, 1, bias=False) ; $b = nn.BatchNorm2d(K) : $b($a(H)).relu()
P  .  $a = nn.Conv2d(D, K, 3, padding=1, padding_mode="circular") : $a(H)
P  .  $a = nn.Conv2d(D, D, 3, padding=1, groups=D) : $a(H).relu()
P  .  $a = nn.Conv2d(D, 2 * D, 1, groups=D) : $a(H)
P  .  $a = nn.Conv2d(D, Q * K, 1, groups=Q) : $a(H)
P  .  $a = nn.Conv2d(D, D, 3, padding=1, groups=Q) : H + $a(H).relu()
P  .  $a = nn.ConvTranspose2d(D, K, 2, stride=2) : $a(H)
P  .  $a = nn.ConvTranspose2d(D, D, 2, stride=2, groups=D) : $a(H)
P  .  $a = nn.ConvTranspose2d(D, Q * K, 1, groups=Q) : $a(H)
P  .  $a = nn.Conv2d(D, 4 * K, 1) : F.pixel_shuffle($a(H), 2)
P  .  $a = nn.Linear(D, 2) ; $b = nn.Linear(2, D) : s = $b($a(H.mean((2, 3))).relu()).sigmoid() | H * s[:, :, None,
    None]
P  .  $a = nn.Conv2d(D, 2, 1) ; $b = nn.Conv2d(2, D, 1) : H * $b(F.relu($a(F.adaptive_avg_pool2d(H, 1)))).sigmoid()
P  .  $a = nn.Parameter(torch.empty(K, D, 1, 1)) : F.conv2d(H, $a)
P  .  $a = nn.Conv2d(D, D, 1) ; $b = nn.Conv2d(D, D, 1) : torch.maximum($a(H), $b(H))
"""

EACH = """
RWSP .  : H.relu()
RWSP .  : F.gelu(H)
RWSP .  : torch.tanh(H) * 0.5 + 0.1
RWSP .  : F.leaky_relu(H, 0.1)
RWSP .  : F.softplus(H)
RWSP .  : H * H
RWSP .  : H.clamp(min=-0.5, max=1)
RWSP .  : torch.where(H > 0, H, 0.1 * H)
RWSP .  : H.masked_fill(H < 0, 0.2)
RWSP .  : -H.abs().add(1).log()
RWSP .  : F.relu_(H * 1.0)
RWSP .  : H.clone().mul_(0.7)
RWSP .  : torch.stack([H, H * 2], -1).amax(-1)
RWSP .  : (H.exp() + 1).log()
RWSP .  : F.hardswish(H)
RWSP .  $a = nn.PReLU() : $a(H)
RW   .  $a = nn.Parameter(torch.empty(D)) : H * $a
SP   .  $a = nn.PReLU(D) : $a(H)
RWSP .  $a = nn.Parameter(torch.empty(D)) : H * $a~
RWSP .  $a = nn.Parameter(torch.empty(D)) : H + $a~
RWSP .  $a = nn.Parameter(torch.empty(D)) ; $b = nn.Parameter(torch.empty(D)) : H * $a~.exp() + $b~
RWSP .  $a = nn.Parameter(torch.empty(1)) : H * $a
RWSP .  $a = torch.rand(D) : H * $a~
SP   .  $a = nn.Parameter(torch.empty(D)) : H * $a.view(1, -1, *[1] * (H.ndim - 2))
P    .  $a = nn.Parameter(torch.empty(1, D, 1, 1)) : H * $a.expand(len(H), -1, -1, -1)
P    .  $a = nn.Parameter(torch.empty(D, 1, 1)) : H + $a.sigmoid()
RWSP .  self.register_buffer("$n", torch.rand(D)) : H / (self.$n~ + 1)
RWSP .  self.register_buffer("$n", torch.rand(D) > 0.5) : H * self.$n~
RWSP .  $a = nn.Dropout(0.1) : $a(H)
RWSP .  : z = torch.zeros_like(H) | z += H | z
RWSP .  : z = torch.empty_like(H) | z.copy_(H) | z
W    .  $a = nn.Parameter(torch.empty(1, 16, D)) : H + $a[:, :H.size(1)]
W    .  $a = nn.Embedding(16, D) : H + $a(torch.arange(H.size(1)))
W    .  $a = nn.Embedding(16, D) : H + $a.weight[:H.size(1)]
"""

NORMS = """
R   .  $a = nn.BatchNorm1d(D) : $a(H)
S   .  $a = nn.BatchNorm1d(D) : $a(H)
P   .  $a = nn.BatchNorm2d(D, affine=False) : $a(H)
P   .  $a = nn.BatchNorm2d(D) : $a(H)
W   .  $a = nn.BatchNorm1d(D) : $a(H.transpose(1, 2)).transpose(1, 2)
W   .  $a = nn.BatchNorm1d(D) : $a(H.flatten(0, 1)).view_as(H)
P   .  $a = nn.InstanceNorm2d(D, affine=True) : $a(H)
S   .  $a = nn.InstanceNorm1d(D, track_running_stats=True) : $a(H)
SP  .  $a = nn.GroupNorm(Q, D) : $a(H)
SP  .  $a = nn.GroupNorm(D, D) : $a(H)
SP  .  $a = nn.GroupNorm(1, D) : $a(H)
RW  .  $a = nn.LayerNorm(D) : $a(H)
RW  .  $a = nn.LayerNorm(D) ; $b = nn.Linear(D, K) ; $c = nn.Linear(K, D) : H + $c($b($a(H)).relu())
RW  .  $a = nn.RMSNorm(D) : $a(H)
RW  .  $a = nn.Parameter(torch.empty(D)) : $a * (H * torch.rsqrt(H.pow(2).mean(-1, keepdim=True) + 1e-6))
RW  .  : (H - H.mean(-1, keepdim=True)) / (H.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
RW  .  : F.normalize(H, dim=-1)
P   .  $a = nn.LayerNorm(D) : $a(H.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
P   .  $a = nn.LocalResponseNorm(2) : $a(H)
W   .  : (H - H.mean(1, keepdim=True)) / (H.std(1, keepdim=True) + 0.1)
R   .  : (H - H.mean(0)) / (H.var(0) + 1)
"""

SEVERAL = """
RWSP .  : H + G
RWSP .  : H * G.sigmoid()
RWSP .  : torch.maximum(H, G)
RWSP .  : torch.lerp(H, G, 0.3)
RWSP .  : torch.addcmul(H, G, H, value=0.2)
RWSP .  : torch.where(H > G, H, G)
RWSP .  : torch.stack([H, G]).mean(0)
RWSP .  : sum([H, G, H])
RWSP .  : u = H.clone() | u += G | u
RWSP .  $a = nn.Parameter(torch.empty(2)) : w = $a.softmax(0) | w[0] * H + w[1] * G
RWSP .  : torch.cat([H, J], C)
RWSP .  : torch.cat([J, H, H], C)
RWSP .  : torch.cat([H, H * H], C)
RWSP .  : torch.cat((J.relu(), -H), dim=C)
RWSP .  : torch.stack([H, G], C).flatten(*([C, C + 1] if C > 0 else [-2, -1]))
W    .  : torch.cat([H, G], 1)
R    W  : torch.stack([H, G], 1)
R    .  : (H[:, :, None] * G[:, None, :]).flatten(1)
W    .  : (H @ G.transpose(1, 2)).softmax(-1) @ J
W    R  : torch.einsum("btd,btd->bd", H, G)
RW   .  : H * (H * G).sum(-1, keepdim=True)
R    .  $a = nn.Linear(D, K) : J[:, :1] * $a(H)
RWSP .  : H if H.shape == J.shape and H.sum() < J.sum() else H * 0.5
"""

PIECES = """
RWSP .  : u, v = H.chunk(2, C) | u * v.sigmoid()
RWSP .  : u, v = H.chunk(2, C) | torch.cat([v, u], C)
RWSP .  : F.glu(H, C)
RWSP .  : u, v = H.split(D // 2, C) | u + v.tanh()
RWSP .  : u, v = H.split([2, D - 2], C) | torch.cat([u.relu(), v], C)
RWSP .  : u, v = H.tensor_split(2, C) | torch.cat([u.relu(), v], C)
RWSP .  : u = H.narrow(C, 0, D // 2) | v = H.narrow(C, D // 2, D // 2) | u * v
RW   .  : H[..., : D // 2] + H[..., D // 2 :]
RW   .  : H[..., ::2] * H[..., 1::2].sigmoid()
RW   .  : n = H.shape[-1] // 2 | torch.cat([-H[..., n:], H[..., :n]], -1)
RW   .  : torch.cat([H[..., :3], H[..., 3:].relu()], -1)
RW   .  : H[..., :-1]
SP   .  : torch.cat([H[:, : D // 2].relu(), H[:, D // 2 :]], 1)
R    .  : a, b = H.unflatten(1, (2, -1)).unbind(1) | a * b
RWSP .  : H.flip(C)
RWSP .  self.register_buffer("$n", torch.randperm(D)) : H.index_select(C, self.$n)
P    .  : F.channel_shuffle(H, Q)
P    .  : H.view(len(H), Q, -1, *H.shape[2:]).transpose(1, 2).flatten(1, 2)
RW   .  : H.unflatten(-1, (Q, -1)).softmax(-1).flatten(-2)
RW   .  : H.unflatten(-1, (-1, Q)).amax(-1)
RW   .  : H.reshape(*H.shape[:-1], Q, D // Q).sum(-2)
"""

LAYOUT = """
W  S  : H.transpose(1, 2)
S  W  : H.mT
P  W  : H.flatten(2).transpose(1, 2)
P  .  $a = nn.Linear(D, K) : $a(H.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
P  S  : H.flatten(2)
P  S  : H.mean(3)
W  R  : H.mean(1)
W  R  : H[:, 0]
W  R  : H[:, -1]
W  R  : H.amax(1)
W  R  : H.flatten(1)
W  R  : H.reshape(len(H), -1)
W  R  $a = nn.Linear(D, 1) : ($a(H).softmax(1) * H).sum(1)
W  .  : H.flip(1)
W  .  : H.cumsum(1)
W  .  : F.pad(H, (0, 0, 1, 0))
W  .  : H.roll(1, 1)
W  .  : u = H.clone() | u[:, 0] = 0 | u
W  .  : H[torch.arange(len(H)), :, :]
W  .  : H.reshape(-1, H.shape[-1]).view_as(H)
S  R  : H.mean(-1)
S  R  : H.logsumexp(2)
S  R  : H.flatten(1)
S  .  : F.max_pool1d(H, 2)
S  .  : F.interpolate(H, scale_factor=2)
S  .  : F.pad(H, (1, 1), mode="replicate")
P  R  : H.mean((2, 3))
P  R  : F.adaptive_avg_pool2d(H, 1).flatten(1)
P  R  : H.flatten(1)
P  R  : H.amax((-1, -2))
P  R  : F.adaptive_max_pool2d(H, 2).flatten(1)
P  .  : F.max_pool2d(H, 2)
P  .  : F.avg_pool2d(H, 2, ceil_mode=True)
P  .  : F.interpolate(H, scale_factor=2, mode="bilinear")
P  .  : F.pad(H, (1, 0, 0, 1))
P  .  : F.pixel_shuffle(H, 2)
P  .  : F.pixel_unshuffle(H, 2)
P  .  : H.transpose(2, 3)
P  W  : F.unfold(H, 2, stride=2).transpose(1, 2)
P  .  : F.fold(F.unfold(H, 2, stride=2), H.shape[2:], 2, stride=2)
R  W  : H[:, None]
R  W  : H[:, None].expand(-1, 3, -1)
R  W  : H.unsqueeze(1).repeat(1, 2, 1)
R  P  : H[:, :, None, None].expand(-1, -1, 2, 2)
R  P  $a = nn.Linear(D, 4 * K) : $a(H).view(-1, K, 2, 2)
R  P  $a = nn.Linear(D, 4 * K) : $a(H).unflatten(1, (K, 2, 2))
R  W  $a = nn.Linear(D, 3 * K) : $a(H).view(len(H), 3, K)
R  W  $a = nn.Linear(D, 3 * K) : $a(H).view(len(H), K, 3).mT
RW .  : H.repeat_interleave(2, -1)
R  .  : H.repeat(1, 2)
R  .  : H.expand(2, *H.shape).sum(0)
"""

ATTENTION = """
W .  $a = nn.MultiheadAttention(D, Q, batch_first=True) : H + $a(H, H, H, need_weights=False)[0]
W .  $a = nn.MultiheadAttention(D, Q, batch_first=True) : $a(H, J, J)[0] if J.shape[2] == D else H
W .  $a = nn.TransformerEncoderLayer(D, Q, K, batch_first=True, dropout=0.0) : $a(H)
W .  $a = nn.Linear(D, 3 * D) ; $b = nn.Linear(D, D) : q, k, v = $a(H).view(*H.shape[:2], 3, Q, D // Q).permute(2, 0,
    3, 1, 4) | $b(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
W .  $a = nn.Linear(D, 3 * D) ; $b = nn.Linear(D, D) : q, k, v = (p.unflatten(-1, (Q, -1)).transpose(1, 2) for p in
    $a(H).chunk(3, -1)) | $b(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1,
    2).reshape(*H.shape[:2], -1))
W .  $a = nn.Linear(D, 4 * K) ; $b = nn.Linear(D, 2 * K) ; $c = nn.Linear(D, 2 * K) ; $d = nn.Linear(4 * K, D) : q =
    $a(H).unflatten(-1, (4, K)).transpose(1, 2) | k, v = (m(H).unflatten(-1, (2, K)).transpose(1,
    2).repeat_interleave(2, 1) for m in ($b, $c)) | $d((q @ k.mT / K ** 0.5).softmax(-1).matmul(v).transpose(1,
    2).flatten(2))
W .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, K) ; $c = nn.Linear(D, K) : q, k, v = $a(H), $b(H), $c(H) | (q @
    k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
W .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, K) ; $c = nn.Linear(D, K) ; $s = K ** -0.5 : ($a(H) @ $b(H).mT *
    $s).softmax(-1) @ $c(H)
W .  $a = nn.Linear(D, K) : u = $a(H) | F.scaled_dot_product_attention(u, u, H)
P .  $a = nn.Conv2d(D, 2, 1) ; $b = nn.Conv2d(D, K, 1) : s = $a(H).flatten(2).softmax(-1) | v = $b(H).flatten(2) | (v
    @ s.mT @ s).view(len(H), -1, *H.shape[2:])
"""

COMPUTED = """
RW .  $a = torch.nn.utils.parametrizations.weight_norm(nn.Linear(D, K)) : $a(H)
RW .  $a = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(D, K)) : $a(H)
RW .  $a = torch.nn.utils.parametrizations.orthogonal(nn.Linear(D, D)) : $a(H)
RW .  $a = nn.Linear(D, K) ; prune.l1_unstructured($a, "weight", 0.3) : $a(H)
RW .  $a = nn.Linear(D, K) ; prune.ln_structured($a, "weight", 0.3, 2, 0) ; prune.remove($a, "weight") : $a(H)
RW .  $a = nn.Linear(D, K) : F.linear(H, $a.weight / $a.weight.norm(dim=1, keepdim=True), $a.bias)
RW .  $a = nn.Linear(D, K) : F.linear(H, $a.weight - $a.weight.mean(0), $a.bias)
RW .  $a = nn.Linear(D, K) : F.linear(H, $a.weight * 2, $a.bias)
RW .  $a = nn.Linear(D, K) : F.linear(H, $a.weight.tanh())
RW .  $a = nn.Linear(D, K) ; $b = nn.Parameter(torch.empty(K, 2)) ; $c = nn.Parameter(torch.empty(2, D)) : F.linear(H,
    $a.weight + $b @ $c)
RW .  $a = nn.Linear(D, D) : F.linear(H, $a.weight + $a.weight.T)
RW .  $a = nn.Linear(D, K) ; self.register_buffer("$n", (torch.rand(K, D) > 0.3).double()) : F.linear(H, $a.weight *
    self.$n)
P  .  $a = nn.Conv2d(D, K, 3, padding=1) : w = $a.weight | F.conv2d(H, w - w.mean((1, 2, 3), keepdim=True), padding=1)
P  .  $a = nn.Conv2d(D, K, 1) : F.conv2d(H, $a.weight.flip(0))
RW .  $a = nn.Linear(D, D) ; $b = nn.Linear(D, D) : F.linear(H, torch.cat([$a.weight, $b.weight]))
RW .  $a = nn.Linear(D, K) : H @ $a.weight.T @ $a.weight
RW .  $a = nn.ParameterList([torch.empty(D, K), torch.empty(D, K)]) : H @ torch.stack(list($a)).sum(0)
"""
