"""GammaCallback in the real Trainer, and the monitor on real GPT-2 models, against one backward pass a sample."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import sdsd

REASON = "transformers or accelerate is not installed: make test-integrations"
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("accelerate", reason=REASON)

from sdsd.integrations.transformers import GammaCallback  # noqa: E402

VOCABULARY, POSITIONS, ROWS = 17, 7, 10
TOKENS = torch.randint(VOCABULARY, (ROWS, POSITIONS), generator=torch.Generator().manual_seed(0))
TOKENS[0, 3:] = TOKENS[0, 0]


def gpt2(attention="eager", tied=True):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        tie_word_embeddings=tied,
        attn_implementation=attention,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).train()


def next_token_loss(logits, tokens):
    """In the precision of the logits; the model's own loss is always in float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_gpt2_against_one_backward_pass_a_sample(attention, tied, checkpointing):
    model = gpt2(attention, tied).double()
    named = dict(model.named_parameters())
    rows = {name: [] for name in named}
    for tokens in TOKENS:
        loss = next_token_loss(model(input_ids=tokens[None]).logits, tokens[None])
        for name, grad in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            rows[name].append(grad.flatten())
    if checkpointing:
        model.gradient_checkpointing_enable()
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        assert monitor.coverage["transformer.h.0.attn.c_attn.weight"] == "linear (weight stored transposed)"
        next_token_loss(model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits, TOKENS).backward()
        stats = monitor.step()
    assert set(stats.parameters) == set(named)
    for name, gradients in rows.items():
        gradients = torch.stack(gradients)
        scale = gradients.square().sum(1).mean().item()
        mean = gradients.mean(0)
        noise = (gradients - mean).square().sum().item() / (ROWS - 1)
        assert abs(stats.parameters[name].noise - noise) <= 1e-12 * scale, name
        assert abs(stats.parameters[name].signal - mean.square().sum().item()) <= 1e-12 * scale, name
        torch.testing.assert_close(named[name].grad.flatten(), mean, rtol=1e-10, atol=1e-12)


def test_a_monitored_model_still_generates():
    model = gpt2().eval()
    prompt, mask = TOKENS[:2, :3], torch.tensor([[0, 1, 1], [1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    plain = model.generate(prompt, **options)
    parameters = inspect.signature(model.forward).parameters
    with sdsd.GammaMonitor(model):
        assert inspect.signature(model.forward).parameters == parameters
        assert torch.equal(model.generate(prompt, **options), plain)


def labels_of(tokens):
    """The Trainer divides by all labels that are not −100, so the first, which nothing predicts, must be."""
    return torch.cat([torch.full_like(tokens[..., :1], -100), tokens[..., 1:]], -1)


def trainer(model, folder, rows=8, **options):
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "seed": 0,
        "dataloader_drop_last": False,
        **options,
    }
    data = [{"input_ids": tokens, "labels": labels_of(tokens), "unused": 1} for tokens in TOKENS[:rows]]
    return transformers.Trainer(
        model=model, args=transformers.TrainingArguments(**options), train_dataset=data, eval_dataset=data
    )


class Loop:
    """The same steps by hand, with the data in the Trainer's order."""

    def __init__(self, model, batches, clip):
        self.found = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            for step in batches:
                for tokens in step:
                    (model(input_ids=tokens, labels=labels_of(tokens)).loss / len(step)).backward()
                self.found.append(monitor.step())
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()


class Recorder(transformers.TrainerCallback):
    """What GammaCallback knew at each step, and the batches in their order."""

    def __init__(self, gamma):
        self.gamma, self.stats = gamma, []

    def on_step_end(self, *_, **__):
        self.stats.append(self.gamma.stats)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (1, 0.01), (2, 0.01), (4, 0.01)])
def test_every_step_is_measured_before_clipping(tmp_path, accumulate, clip):
    model = gpt2()
    gamma = GammaCallback(mode="exact")
    run = trainer(model, tmp_path, gradient_accumulation_steps=accumulate, max_grad_norm=clip)
    recorder = Recorder(gamma)
    run.add_callback(gamma)
    run.add_callback(recorder)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    run.train()
    handle.remove()
    wanted = Loop(gpt2(), [seen[i : i + accumulate] for i in range(0, len(seen), accumulate)], clip).found
    assert len(recorder.stats) == len(wanted) == 4 // accumulate
    for found, stats in zip(recorder.stats, wanted, strict=True):
        assert found.n == 2 * accumulate
        assert found.signal == pytest.approx(stats.signal, rel=1e-4)
        assert found.noise == pytest.approx(stats.noise, rel=1e-4)
    assert gamma.monitor is None
    assert not any(name.startswith("_sdsd") for part in model.modules() for name in vars(part))


def test_values_go_where_the_trainer_reports(tmp_path):
    run = trainer(gpt2(), tmp_path, logging_steps=2)
    run.add_callback(GammaCallback(log=run.log, mode="exact"))
    run.train()
    logged = [entry for entry in run.state.log_history if "gamma/noise_scale" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert logged[-1]["gamma/smoothed/noise"] > 0


def test_bfloat16_autocast_and_evaluation_in_between(tmp_path):
    plain = GammaCallback(mode="exact")
    run = trainer(gpt2(), tmp_path)
    run.add_callback(plain)
    run.train()
    half = GammaCallback(mode="exact")
    run = trainer(gpt2(), tmp_path, bf16=True, eval_strategy="steps", eval_steps=1)
    run.add_callback(half)
    run.train()
    assert half.stats.n == 2
    assert half.stats.noise == pytest.approx(plain.stats.noise, rel=0.1)


def test_many_micro_batches_become_the_samples(tmp_path):
    model = gpt2()
    gamma = GammaCallback(mode="micro")
    run = trainer(model, tmp_path, gradient_accumulation_steps=4)
    run.add_callback(gamma)
    run.train()
    assert (gamma.stats.n, gamma.stats.samples_per_gradient) == (4, 2)


def test_averages_over_the_run(tmp_path):
    gamma = GammaCallback(mode="exact", every=2)
    run = trainer(gpt2(), tmp_path)
    run.add_callback(gamma)
    run.train()
    run.train()
    low, high = gamma.stats.smoothed.interval
    assert low < gamma.stats.smoothed.gamma_unbiased < high


def test_deepspeed_is_refused(tmp_path):
    run = trainer(gpt2(), tmp_path)
    run.args.deepspeed = {"zero_optimization": {"stage": 1}}
    callback = GammaCallback()
    with pytest.raises(ValueError, match="DeepSpeed keeps gradients to itself. Train with DDP or FSDP2"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model)
    assert callback.monitor is None


def test_the_models_own_loss_over_two_passes_and_unequal_lengths():
    """num_items_in_batch, as the Trainer passes it: divided by the tokens of both passes, as if they were one batch."""
    labels = labels_of(TOKENS).clone()
    for row in range(ROWS):
        labels[row, 2 + row % 5 :] = -100
    tokens = (labels != -100).sum()
    model = gpt2()
    rows = []
    for row in range(ROWS):
        loss = model(input_ids=TOKENS[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=tokens).loss
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    rows = torch.stack(rows).double() * ROWS
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for part in (slice(0, 3), slice(3, ROWS)):
            model(input_ids=TOKENS[part], labels=labels[part], num_items_in_batch=tokens).loss.backward()
        stats = monitor.step()
    assert stats.n == ROWS
    assert stats.signal == pytest.approx(rows.mean(0).square().sum().item(), rel=1e-4)
    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-4)
    own = model(input_ids=TOKENS, labels=labels).loss  # without it: the mean over the batch's own tokens
    grad = torch.cat([g.flatten() for g in torch.autograd.grad(own, list(model.parameters()))])
    torch.testing.assert_close(grad.double(), rows.mean(0), rtol=1e-4, atol=1e-6)
