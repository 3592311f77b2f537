"""Lines of random networks: programs around layers, and what is done to all neurons. `steps.py` says how to read it."""

SIZES = """
RWSP .  : H / math.sqrt(H.shape[C])
RWSP .  : H / D
RWSP .  $a = D : H / $a
RWSP .  $a = D : H.view(len(H), *H.shape[1:]) if H.shape[C] == $a else H * 2
RWSP .  : H * (2 if H.shape[C] == 6 else 1)
RWSP .  : H * (2 if H.shape[C] > 3 else 1)
RWSP .  : H * (0.5 if H.shape[0] == H.shape[C] else 1)
RWSP .  : H + G if H.shape == G.shape else H
W    .  : H * (2 if H.shape[1] > 5 else 1)
W    .  : H * (2 if H.shape[1] == H.shape[2] else 1)
R    .  : H * (2 if len(H) > 4 else 1)
W    .  : H.view(H.size(0), H.size(1), D)
RWSP .  : assert H.shape[C] == D | H
RW   .  : torch.zeros(H.shape) + H
RW   .  : z = H.new_zeros(*H.shape[:-1], D) | z + H
RW   .  : H + torch.arange(H.shape[-1]) * 0.1
RW   .  : H * torch.ones(D)
RW   .  $a = (D,) : F.layer_norm(H, $a)
RWSP .  : F.pad(H, (0, 1)) if H.shape[-1] % 2 else H
RWSP .  : H * len(H.shape) + H.numel() // H.shape[0] * 0.01
"""

PROGRAMS = """
RW  .  $a = nn.Linear(D, K) ; $b = nn.Linear(K, D, bias=False) ; $b.weight.data = $a.weight.data.T : $b($a(H).relu())
RW  .  $a = nn.Linear(D, K) ; $b = nn.Linear(D, K) ; $b.weight = nn.Parameter($a.weight) : $a(H) * $b(H)
RW  .  $a = nn.Linear(D, 2 * K) ; $b = nn.Linear(D, K) ; $b.weight = nn.Parameter($a.weight[:K]) : $b(H) + $a(H)[...,
    :K]
RW  .  $a = nn.Linear(D, K) ; $b = $a : $a(H) + $b(H * 2)
RW  .  $a = nn.Linear(D, K) : d = {"k": $a(H)} | d["k"] * 2
RW  .  $a = nn.Linear(D, 2 * K) : $a(H).unflatten(-1, (K, 2)).amax(-1)
RW  .  $a = nn.Linear(D, 2 * K) : $a(H).unflatten(-1, (2, K)).amax(-2)
RW  .  $a = nn.Linear(D, 2 * K) : $a(H).view(*H.shape[:-1], -1, 2).prod(-1)
RW  .  $a = nn.Linear(D, 3) ; $b = nn.ModuleList(nn.Linear(D, K) for _ in range(3)) : g = $a(H).softmax(-1) |
    sum(g[..., k : k + 1] * $b[k](H) for k in range(3))
RW  .  $a = nn.Linear(D, 3) ; $b = nn.ModuleList(nn.Linear(D, K) for _ in range(3)) : g = $a(H).softmax(-1) |
    (torch.stack([e(H) for e in $b], -1) * g[..., None, :]).sum(-1)
R   .  $a = nn.Linear(D, D * K) : w = $a(H).view(len(H), K, D) | torch.einsum("nkd,nd->nk", w, H)
W   .  $a = nn.Linear(D, 2 * D) : s, t = $a(H.mean(1)).chunk(2, -1) | H * s[:, None] + t[:, None]
P   .  $a = nn.Linear(D, 2 * D) : s, t = $a(H.mean((2, 3)))[:, :, None, None].chunk(2, 1) | H * (1 + s) + t
RW  .  $a = nn.Linear(D, 3) ; $b = nn.Linear(D, 4) : ($a(H)[..., :, None] * $b(H)[..., None, :]).flatten(-2)
W   R  $a = nn.Linear(D, K) ; $b = nn.Linear(K, K) : u = $a(H[:, 0]) | for t in range(1, H.shape[1]): u =
    torch.tanh($a(H[:, t]) + $b(u)) | u
W   .  $a = nn.Linear(D, K) ; $b = nn.GRUCell(K, D) : u = H[:, 0] | for t in range(H.shape[1]): u = $b($a(H[:, t]), u)
    | H + u[:, None]
W   .  $a = nn.Linear(D, K) : torch.stack([$a(H[:, t]) for t in range(H.shape[1])], 1)
W   .  $a = nn.Linear(T, T) : H + $a(H.mT).mT
W   .  $a = nn.Linear(T, K) : $a(H.transpose(1, 2)).transpose(1, 2)
W   .  $a = nn.Conv1d(T, T, 3, padding=1) : $a(H)
W   .  $a = nn.BatchNorm1d(T) : $a(H)
W   .  $a = nn.LayerNorm([T, D]) : $a(H)
S   .  $a = nn.LayerNorm(T) : $a(H)
S   .  $a = nn.Linear(T, T) : $a(H)
P   .  $a = nn.LayerNorm(T) : $a(H)
R   .  $a = nn.Linear(D // Q, K) : $a(H.view(len(H), Q, -1)).flatten(1)
RW  .  $a = nn.Linear(D // Q, D // Q) : $a(H.reshape(*H.shape[:-1], -1, D // Q)).reshape(H.shape)
RW  .  $a = nn.Linear(Q, Q) : $a(H.unflatten(-1, (-1, Q))).flatten(-2)
R   .  : H @ (H.T @ H) / len(H)
W   .  $a = nn.Linear(D, D) ; $b = nn.Linear(D, D) : H @ ($a(H).mT @ $b(H)).softmax(-1)
W   .  : F.scaled_dot_product_attention(H, H, H)
W   .  : (H[:, :, None] - H[:, None]).abs().amax(2)
RWSP .  : u, v = H.clone().chunk(2, C) | u.mul_(2) | torch.cat([u, v], C)
RWSP .  : u = H.clone() | u.chunk(2, C)[0].mul_(2) | u
RWSP .  : u = H.clone() | u.narrow(C, 0, 1).zero_() | u
RW   .  : u = H.clone() | u[..., : D // 2] *= 2 | u
RW   .  : u = H.clone() | u[..., 1] = H[..., 0] | u
RW   .  : u = torch.zeros_like(H) | u[..., : D // 2] = H[..., D // 2 : 2 * (D // 2)] | u
RWSP .  : u = torch.empty_like(H) | torch.mul(H, 2, out=u)
RW   .  : u = H.new_empty(H.shape) | torch.add(H, 1, out=u) | u
RWSP .  : H.detach() + H * 0.1
RW   .  : u, *v = H.unbind(-1) | torch.stack([*v, u], -1)
RW   .  : torch.stack([u * 2 for u in H.unbind(-1)], -1)
RW   .  : torch.stack(H.unbind(-1)[::-1], -1)
W    .  : torch.stack([u.relu() for u in H.unbind(1)], 1)
RWSP .  : torch.stack([u.relu() for u in H])
R    .  $a = nn.Parameter(torch.empty(1, 1, 3)) : F.conv1d(H[:, None], $a, padding=1)[:, 0]
W    .  $a = nn.Parameter(torch.empty(D, 1, 3)) : F.conv1d(H.mT, $a, padding=1, groups=D).mT
W    .  $a = nn.Parameter(torch.empty(D, 1, 3)) : F.conv1d(H.mT, $a, padding=1, groups=H.shape[-1]).mT
W    .  $a = nn.Parameter(torch.empty(D, K)) : torch.tensordot(H, $a, dims=1)
RW   .  $a = nn.Parameter(torch.empty(D, K)) : torch.kron(H, torch.ones(1)) @ $a
R    .  $a = nn.Parameter(torch.empty(K, D)) : F.embedding(H.argmax(-1) % K, $a)
R    .  $a = nn.Parameter(torch.empty(K, D)) : torch.addmm(H, H, $a.T @ $a)
R    .  $a = nn.Parameter(torch.empty(K, D)) : -torch.cdist(H, $a)
R    .  $a = nn.Parameter(torch.empty(K, D)) : F.cosine_similarity(H[:, None], $a, dim=-1)
RW   .  $a = nn.Parameter(torch.empty(K, D)) : (H[..., None, :] * $a).sum(-1)
RW   .  $a = nn.Parameter(torch.empty(K, D)) : (H.unsqueeze(-2) - $a).pow(2).sum(-1)
RW   .  $a = nn.Parameter(torch.empty(K, D)) : ((H @ $a.T).softmax(-1) @ $a)
I    W  $a = nn.Embedding(V, K, max_norm=1.0) : $a(H)
I    W  $a = nn.Parameter(torch.empty(V, K)) : $a[H]
I    W  $a = nn.Parameter(torch.empty(V, K)) : F.one_hot(H, V).to($a) @ $a
I    W  $a = nn.Embedding(V, K) ; $b = nn.Linear(K, 4) : F.embedding(H, $a.weight) * math.sqrt($a.embedding_dim)
P    W  $a = nn.Conv2d(D, K, 2, stride=2) ; $b = nn.Parameter(torch.empty(1, 1, K)) : u = $a(H).flatten(2).mT |
    torch.cat([$b.expand(len(u), -1, -1), u], 1)
P    .  $a = nn.Conv2d(D + 2, K, 1) : g = torch.linspace(-1, 1, H.shape[-1]).expand(len(H), 1, *H.shape[2:]) |
    $a(torch.cat([H, g, g.mT], 1))
P    .  $a = nn.Conv2d(2, 1, 1) : H * $a(torch.cat([H.mean(1, keepdim=True), H.amax(1, keepdim=True)], 1)).sigmoid()
P    .  $a = nn.Conv1d(1, 1, 3, padding=1) : s = $a(H.mean((2, 3))[:, None]).sigmoid() | H * s.mT[..., None]
"""

HOSTILE = """
RW   .  : H - H.mean(-1, keepdim=True)
RWSP .  : H.softmax(C)
RWSP .  : H.cumsum(C)
RWSP .  : H.sort(C).values
RWSP .  : H.topk(2, C).values
RWSP .  : H * (H.argmax(C, keepdim=True) + 1)
RWSP .  : H / H.amax(C, keepdim=True).abs().add(1)
RWSP .  : H.roll(1, C)
RWSP .  : H * H.norm()
RWSP .  : H - H.mean()
RWSP .  : H / H.std()
RWSP .  : m = H.mean(C) | H * 1.0
RW   .  : F.pad(H, (1, 1))
RW   .  : F.avg_pool1d(H if H.ndim == 3 else H[:, None], 2).view(*H.shape[:-1], -1)
RW   .  : F.one_hot(H.argmax(-1), D).double() * H
RW   .  : H @ torch.eye(D)
RW   .  : H @ H.new_ones(D, 3)
RW   .  : H[..., [1, 0, 2]]
RW   .  : u = H.clone() | u[..., 0] = 0 | u
RW   .  : torch.fft.rfft(H).abs()
RW   .  : F.cosine_similarity(H, G, dim=-1)[..., None] * H
RW   .  : torch.cdist(H, G)
RWSP .  : H * (H > H.mean(C, keepdim=True))
RWSP .  : H.unfold(C, 2, 1).sum(-1)
P    .  : H.view(len(H), -1).softmax(1).view_as(H)
W    .  : H.transpose(1, 2).reshape(H.shape)
W    .  : H.view(len(H), -1, H.shape[1]).mT
RW   .  : torch.cat([H, H.new_zeros(*H.shape[:-1], 2)], -1)
W    .  : torch.tril(H)
P    .  : H.transpose(1, 2)
RW   .  : H.gather(-1, H.argsort(-1))
RWSP .  : F.dropout1d(H, 0.0) if H.ndim == 3 else H.diff(dim=C)
"""
