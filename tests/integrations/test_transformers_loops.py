"""GammaCallback in a Trainer as it is set up to train: texts of unlike length, adapters, checkpoints, logs, stops.

Every number is held against a float64 loop over the samples, with the weights and batches of each step.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import sdsd

REASON = "is not installed: make test-integrations"
transformers = pytest.importorskip("transformers", reason=f"transformers {REASON}")
pytest.importorskip("accelerate", reason=f"accelerate {REASON}")

from sdsd.gamma.monitor.proof import Prover  # noqa: E402
from sdsd.integrations.transformers import GammaCallback  # noqa: E402

VOCABULARY = 17


def texts():
    """24 texts of 3 to 8 tokens, the first one or two of which nothing has to predict."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(24):
        length, skipped = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((3, 9), (1, 3)))
        tokens = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * skipped + tokens[skipped:]})
    return rows


def padded(rows):
    most = max(len(row["input_ids"]) for row in rows)

    def column(name, fill):
        return torch.tensor([row[name] + [fill] * (most - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (most - len(row["input_ids"])) for row in rows])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", -100), "attention_mask": mask}


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def adapted():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(gpt2(), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # zero, A has no gradient
    return model


class Kept(transformers.TrainerCallback):
    """What GammaCallback knew at the end of each step."""

    def __init__(self, gamma):
        self.gamma, self.stats = gamma, []

    def on_step_end(self, *_, **__):
        self.stats.append(self.gamma.stats)


class Seen(transformers.Trainer):
    """Keeps the weights and the batch of every backward pass; fails at a step if asked to."""

    fails_at, kept = None, ()

    def training_step(self, model, inputs, *rest):
        if self.state.global_step == self.fails_at:
            raise KeyboardInterrupt
        weights = {name: p.detach().double().clone() for name, p in self.model.named_parameters()}
        self.kept = [*self.kept, (weights, {name: value.clone() for name, value in inputs.items()})]
        return super().training_step(model, inputs, *rest)


def trainer(model, folder, gamma, **options):
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 0.1,
        "max_grad_norm": 0.01,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "seed": 0,
        **options,
    }
    run = Seen(
        model=model,
        args=transformers.TrainingArguments(**options),
        train_dataset=texts(),
        eval_dataset=texts()[:6],
        data_collator=padded,
    )
    kept = Kept(gamma)
    run.add_callback(gamma)
    run.add_callback(kept)
    return run, kept.stats


def token_losses(logits, labels, smoothing=0.0):
    """The sum over tokens; smoothing as in the Trainer's LabelSmoother."""
    wanted = labels[:, 1:]
    chances = -F.log_softmax(logits[:, :-1].double(), -1)
    valid = wanted != -100
    right = chances.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][valid].sum()
    return (1 - smoothing) * right + smoothing * chances.mean(-1)[valid].sum()


def by_loop(model, step, smoothing=0.0):
    """(n, signal, noise) of the backward passes of a step, their loss a mean over all of the step's tokens."""
    tokens = sum(int((batch["labels"] != -100).sum()) for _, batch in step)
    rows = []
    for weights, batch in step:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for index in range(len(batch["labels"])):
            one = {name: value[index : index + 1] for name, value in batch.items()}
            logits = model(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits
            loss = token_losses(logits, one["labels"], smoothing) / tokens
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    rows = torch.stack(rows) * len(rows)
    return len(rows), rows.mean(0).square().sum().item(), rows.var(0).sum().item()


SETUPS = {
    "a mean over tokens": (gpt2, 2, {}),
    "label smoothing": (gpt2, 2, {"label_smoothing_factor": 0.1}),
    "evaluation in between": (gpt2, 1, {"eval_strategy": "steps", "eval_steps": 1}),
    "compiled": (gpt2, 1, {"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "adapters": (adapted, 2, {}),
    "checkpointing": (gpt2, 2, {"gradient_checkpointing": True}),
    **{
        f"{name}, {'reentrant' if reentrant else 'not reentrant'} checkpointing": (
            make,
            2,
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
        )
        for name, make in (("all", gpt2), ("adapters", adapted))
        for reentrant in (False, True)
    },
}


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.filterwarnings("ignore")
def test_every_step_against_a_loop_over_samples(name, tmp_path):
    make, accumulate, options = SETUPS[name]
    torch.compiler.reset()
    run, found = trainer(
        make(), tmp_path, GammaCallback(mode="exact"), gradient_accumulation_steps=accumulate, **options
    )
    run.train()
    oracle = make().double()
    assert len(found) == 6 // accumulate
    for index, stats in enumerate(found):
        step = run.kept[index * accumulate : (index + 1) * accumulate]
        wanted = by_loop(oracle, step, options.get("label_smoothing_factor", 0.0))
        assert (stats.n, stats.signal, stats.noise) == pytest.approx(wanted, rel=1e-4)


def test_steps_between_are_not_proved_for_the_callback(tmp_path, monkeypatch):
    """Hooks of the callback on parameters had every step prove itself, which a GPU waits for."""
    proved, plain = [], Prover.differences
    monkeypatch.setattr(Prover, "differences", lambda self, *a, **k: proved.append(1) or plain(self, *a, **k))
    run, found = trainer(gpt2(), tmp_path, GammaCallback(mode="exact"), num_train_epochs=3)
    run.train()
    assert len(found) == 18
    assert len(proved) == 3


def test_the_trainers_own_lines_stay_in_the_log(tmp_path):
    plain, _ = trainer(gpt2(), tmp_path, GammaCallback(mode="exact"), logging_steps=2)
    plain.train()
    run, _ = trainer(gpt2(), tmp_path, gamma := GammaCallback(mode="exact"), logging_steps=2)
    gamma.log = run.log
    run.train()
    history = copy.deepcopy(run.state.log_history)
    ours = [entry for entry in history if "gamma/noise" in entry]
    assert [entry["step"] for entry in ours] == [2, 4, 6]
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    theirs = [
        [{key: value for key, value in entry.items() if key not in timed} for entry in entries if entry not in ours]
        for entries in (plain.state.log_history, history)
    ]
    assert theirs[0] == theirs[1]
    assert "loss" in theirs[1][0]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_strategy": "no", "logging_steps": 0}, []),
        ({"logging_strategy": "epoch", "num_train_epochs": 2}, [6, 12]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4]),
    ],
    ids=["no", "epoch", "first step"],
)
def test_it_logs_when_the_trainer_does(tmp_path, options, steps):
    run, _ = trainer(gpt2(), tmp_path, gamma := GammaCallback(mode="exact"), **options)
    gamma.log = run.log
    run.train()
    assert [entry["step"] for entry in run.state.log_history if "gamma/noise" in entry] == steps


@pytest.mark.parametrize("saves", ["steps", "epoch", "best"])
def test_training_that_resumes_goes_on_with_averages_and_history(tmp_path, saves):
    options = {"save_strategy": saves, "num_train_epochs": 2}
    options |= {"save_steps": 3} if saves == "steps" else {}
    if saves == "best":
        options |= {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss", "learning_rate": 0.01}
    path = tmp_path / "run.jsonl"
    run, found = trainer(gpt2(), tmp_path / "out", GammaCallback(mode="exact", history=path), **options)
    run.train()
    whole = sdsd.GammaHistory(path)[:]
    checkpoint = min((tmp_path / "out").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    step = int(checkpoint.name.split("-")[1])
    json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    resumed, again = trainer(gpt2(), tmp_path / "out", GammaCallback(mode="exact", history=path), **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(again) == 12 - step
    assert again[-1].smoothed.noise == pytest.approx(found[-1].smoothed.noise, rel=1e-6)
    rows = sdsd.GammaHistory(path)
    assert rows.column("step") == list(range(1, 13))
    assert rows.column("signal")[:step] == [row["signal"] for row in whole[:step]]
    assert rows.column("smoothed_gamma") == pytest.approx([row["smoothed_gamma"] for row in whole], rel=1e-4)


def test_a_checkpoint_without_averages_begins_them_anew_and_keeps_the_steps(tmp_path):
    run, _ = trainer(gpt2(), tmp_path, gamma := GammaCallback(mode="exact"), save_strategy="steps", save_steps=3)
    run.remove_callback(gamma)
    run.train()
    path = tmp_path / "run.jsonl"
    resumed, found = trainer(gpt2(), tmp_path, GammaCallback(mode="exact", history=path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert sdsd.GammaHistory(path).column("step") == [4, 5, 6]
    assert found[0].smoothed.noise == pytest.approx(found[0].noise)


def test_training_that_was_stopped_starts_again(tmp_path):
    run, found = trainer(gpt2(), tmp_path, GammaCallback(mode="exact"))
    run.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.fails_at = None
    run.train()
    assert len(found) == 2 + 6
    assert [stats.n for stats in found] == [4] * 8
