"""What surrounds a call: threads at once, interrupts, positions, padding, caches, and a Trainer that counts labels."""

from __future__ import annotations

import contextvars
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice import CausalLMHead, ClassificationHead, adapters
from adaptergit.splice.methods import TunedParameters

NEWEST = int(transformers.__version__.partition(".")[0]) >= 5
IDS = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(3))


def noisy(panel: Any, **configs: str) -> None:
    """Add adapters that act."""
    for name, config in configs.items():
        panel.add(name, config)
        generator = torch.Generator().manual_seed(ord(name[0]))
        with torch.no_grad():
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def made(kind: str, **options: Any) -> Any:
    """A tiny model of a kind of which no base is at hand."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **options})
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


def hidden(model: nn.Module, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **inputs)[0]
    return found


# --- threads and interrupts ---------------------------------------------------------------------------------------------


@contextmanager
def often(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_that_come_and_go_disturb_nobody() -> None:
    """Hooks are never taken from a thread that runs, nor changed under it."""
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = adapters(model)
    noisy(panel, p="prefix_tuning_flat[prefix_length=3]", r="loreft[dropout=0.0]", l="lora", m="lora", s="seq_bn")
    panel.add_head("s", ClassificationHead(num_labels=3))

    def using(what: str | None, **inputs: Any) -> torch.Tensor:
        with torch.no_grad(), panel.using(what):
            found: torch.Tensor = model(input_ids=IDS, **inputs).logits
        return found

    jobs: list[Callable[[], torch.Tensor]] = [
        lambda: using("p"),
        lambda: using("r"),
        lambda: using("s"),
        lambda: using("MultiTask(l, m)", task_ids=[0, 1, 0]),
        lambda: model(input_ids=IDS).logits.detach(),
    ]
    expected = [job() for job in jobs]
    wrong: list[str] = []

    def run(number: int) -> None:
        try:
            for _ in range(60):
                torch.testing.assert_close(jobs[number](), expected[number], atol=1e-5, rtol=1e-4)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test names it
            wrong.append(f"{number}: {type(error).__name__}: {error}")

    with often(1e-4):
        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def interrupted(model: Any, path: str, call: Callable[[], Any]) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.get_submodule(path).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        call()
    handle.remove()


def test_an_interrupted_call_leaves_nothing_to_the_next() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    panel = adapters(model)
    noisy(panel, a="lora", b="lora")
    plain = model(IDS).logits
    panel.active = "MultiTask(a, b)"
    interrupted(model, "bert.encoder.layer.1", lambda: model(IDS, task_ids=[0, 1, 0]))
    panel.active = None
    assert torch.equal(model(IDS).logits, plain)

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 80}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    panel = adapters(t5)
    noisy(panel, r="loreft[prefix_positions=2, dropout=0.0]")
    panel.active = "r"
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def generated() -> torch.Tensor:
        return torch.stack(t5.generate(IDS, attention_mask=torch.ones_like(IDS), **options).logits)

    expected = generated()
    interrupted(t5, "decoder.block.1", lambda: t5.generate(IDS, attention_mask=mask, **options))
    assert torch.equal(generated(), expected)


def test_what_an_interrupted_call_left_is_cleared_wherever_one_looks_next() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    plain, hidden_plain = model(IDS).logits, model.bert(IDS)[0]
    panel = adapters(model)
    noisy(panel, a="lora", b="lora")
    for check in ("base", "detach", "merge"):
        panel.active = "MultiTask(a, b)"
        context = contextvars.copy_context()
        context.run(interrupted, model, "bert.encoder.layer.1", lambda: model(IDS, task_ids=[0, 1, 0]))
        panel.active = None
        if check == "base":
            assert torch.equal(model.bert(IDS)[0], hidden_plain)
        elif check == "merge":
            panel.merge("a")
            panel.unmerge("a")
        assert torch.equal(model(IDS).logits, plain)
    panel.active = "Parallel(a, b)"
    interrupted(model, "bert.encoder.layer.1", lambda: model(IDS))
    assert len(model.bert(IDS)[0]) == 6
    panel.detach()
    assert torch.equal(model(IDS).logits, plain)


def test_what_stands_in_for_a_vocabulary_is_taken_back_after_an_interrupt() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 80}
    more = {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 1}
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **more)).eval()
    bart.final_logits_bias.normal_()
    expected = bart(input_ids=IDS).logits
    panel = adapters(bart)
    panel.add_embeddings("e", 50)
    panel.activate(None, embeddings="e")
    few = IDS % 50
    interrupted(bart, "model.decoder.layers.0", lambda: bart(input_ids=few, labels=few))
    assert bart(input_ids=few).logits.shape[-1] == 50
    interrupted(bart, "model.decoder.layers.0", lambda: bart(input_ids=few, labels=few))
    panel.detach()
    assert bart.config.vocab_size == 80
    assert torch.equal(bart(input_ids=IDS).logits, expected)
    panel = adapters(bart)
    panel.add_embeddings("e", 50)
    panel.activate(None, embeddings="e")
    bart(input_ids=few)
    bart.double()
    assert bart(input_ids=few).logits.dtype == torch.float64
    panel.detach()
    assert bart.final_logits_bias.dtype == torch.float64


def test_rows_chosen_under_inference_mode_are_trained_later() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, a="lora", b="lora")
    panel.train("a")
    panel.route(["a", "b", "a"])
    with torch.inference_mode():
        model(IDS)
    model(IDS)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in panel.module("a").parameters())


# --- rows and positions -------------------------------------------------------------------------------------------------


def test_rows_are_counted_by_the_tokens_whatever_comes_first() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, a="lora", b="seq_bn")
    panel.active = "Parallel(a, b)"
    positions = torch.arange(8)[None]
    assert len(hidden(model, position_ids=positions)) == 6
    with torch.no_grad():
        first = model(position_ids=positions, input_ids=IDS)[0]
    assert torch.equal(first, hidden(model))


def test_biogpt_counts_as_its_version_does() -> None:
    """By the mask in transformers 4; every token, padding too, in transformers 5."""
    model = made("biogpt", max_position_embeddings=40, pad_token_id=1)
    panel = adapters(model)
    noisy(panel, p="prefix_tuning_flat[prefix_length=3, positions=before]")
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    seen: list[torch.Tensor] = []
    model.base_model.embed_positions.register_forward_hook(lambda _m, _a, output: seen.append(output.clone()))
    hidden(model, IDS, attention_mask=mask)
    (row,) = {int((model.base_model.embed_positions.weight == one).all(1).nonzero()[0]) for one in seen[0][-1, -1:]}
    panel.active = "p"
    hidden(model, IDS, attention_mask=mask)
    assert torch.equal(seen[1][-1, -1], model.base_model.embed_positions.weight[row + 3])


@pytest.mark.parametrize("kind", ["roberta", "opt"])
def test_a_prefix_that_takes_positions_shifts_those_that_the_model_makes_up(kind: str) -> None:
    """RoBERTa counts from behind its padding token, OPT by the mask; padding keeps its position, as in PEFT."""
    more: dict[str, Any] = {"max_position_embeddings": 40, "pad_token_id": 1}
    if kind == "opt":
        more |= {"word_embed_proj_dim": 32, "ffn_dim": 64}
    model = made(kind, **more)
    panel = adapters(model)
    noisy(panel, p="prefix_tuning_flat[prefix_length=3, positions=before]")
    panel.active = "p"
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    padded = IDS.masked_fill(mask == 0, 1)
    own = mask.cumsum(1) * mask + 1 if kind == "roberta" else mask.cumsum(1) * mask - 1
    seen: list[torch.Tensor] = []
    table = next(
        module for name, module in model.named_modules() if name.endswith(("position_embeddings", "positions"))
    )
    table.register_forward_hook(lambda _m, _a, output: seen.append(output.clone()))
    found = hidden(model, padded, attention_mask=mask)
    panel.active = None
    hidden(model, padded, attention_mask=mask, position_ids=own + 3 * mask)
    assert torch.equal(seen[0].expand_as(seen[1]), seen[1])
    panel.active = "p"
    alone = hidden(model, padded[1:2, 3:])
    torch.testing.assert_close(found[1:2, 3:], alone, atol=1e-5, rtol=1e-4)


PADDED = torch.ones_like(IDS)
PADDED[1, :3] = 0


def check_cache_of_a_fixed_size(model: Any, ids: torch.Tensor) -> None:
    """Compare with a cache that grows what counts tokens from the first real one on."""
    panel = adapters(model)
    noisy(panel, r="loreft[prefix_positions=2, dropout=0.0]")
    panel.active = "r"
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    grown, fixed = (
        torch.stack(model.generate(ids, attention_mask=PADDED, return_dict_in_generate=True, **options, **more).logits)
        for more in ({}, {"cache_implementation": "static", "disable_compile": True})
    )
    torch.testing.assert_close(fixed, grown, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_of_a_fixed_size_hides_no_padding(name: str) -> None:
    check_cache_of_a_fixed_size(tiny_model(name, "AutoModelForCausalLM"), IDS.masked_fill(PADDED == 0, 0))


@pytest.mark.skipif(not NEWEST, reason="of transformers 5")
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_windows_hide_no_tokens_from_who_counts_them(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    more = {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 4, "max_position_embeddings": 64}
    more |= {"use_sliding_window": True, "max_window_layers": 0} if kind == "qwen2" else {}
    config = transformers.AutoConfig.for_model(kind, **sizes, **more)
    check_cache_of_a_fixed_size(transformers.AutoModelForCausalLM.from_config(config).eval(), IDS)


@pytest.mark.skipif(not NEWEST, reason="transformers 4 refuses them itself")
def test_masks_of_more_dimensions_are_read_or_refused() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, r="loreft[prefix_positions=2, dropout=0.0]", p="prompt_tuning[prompt_length=2]")
    panel.active = "r"
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    wide = torch.zeros(3, 1, 8, 8).masked_fill(mask[:, None, None, :] == 0, torch.finfo(torch.float32).min)
    torch.testing.assert_close(hidden(model, attention_mask=wide), hidden(model, attention_mask=mask))
    panel.active = "p"
    with pytest.raises(UsageError, match="masks of tokens"):
        hidden(model, attention_mask=wide)


@pytest.mark.skipif(NEWEST, reason="transformers 5 refuses them itself")
def test_masks_of_queries_and_tokens_are_read() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, r="loreft[prefix_positions=2, dropout=0.0]")
    panel.active = "r"
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    square = mask[:, None, :].expand(3, 8, 8)
    torch.testing.assert_close(hidden(model, attention_mask=square), hidden(model, attention_mask=mask))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_prefix_and_a_cache_go_together_or_are_refused(attention: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=64, is_decoder=True)
    model = transformers.BertLMHeadModel._from_config(config, attn_implementation=attention).eval()
    panel = adapters(model)
    noisy(panel, p="prefix_tuning_flat[prefix_length=3]")
    panel.active = "p"
    with torch.no_grad():  # a decoder sees what is before, with a mask and without
        whole = model(IDS, use_cache=False).logits
        masked = model(IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
        shorter = model(IDS[:, :5], use_cache=False).logits
    torch.testing.assert_close(whole, masked)
    torch.testing.assert_close(whole[:, :5], shorter, atol=1e-5, rtol=1e-4)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "pad_token_id": 0}

    def generated(**more: Any) -> torch.Tensor:
        return torch.stack(model.generate(IDS, return_dict_in_generate=True, **options, **more).logits)

    without = generated(use_cache=False)
    if NEWEST:
        torch.testing.assert_close(generated(), without, atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(ModelError, match="use_cache=False"):
            generated()


def test_gates_are_means_over_one_row() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, g="lora[target_modules=['pooler.dense'], use_gating=True]")
    panel.active = "g"
    with torch.no_grad():
        together = model(IDS).pooler_output
        alone = torch.cat([model(IDS[row : row + 1]).pooler_output for row in range(3)])
    torch.testing.assert_close(together, alone)


def test_where_positions_come_before_rows_nothing_takes_one_for_the_other() -> None:
    model = made("xlnet", d_model=32, n_layer=2, n_head=4, d_inner=64)
    panel = adapters(model)
    noisy(panel, a="seq_bn", b="seq_bn", g="seq_bn[use_gating=True]")
    panel.active = "a"
    for wrong in ("Split(a, b, splits=[3, 5])", "g"):
        with pytest.raises(UsageError, match="positions before rows"):
            panel.active = wrong
    with pytest.raises(ModelError, match="positions before rows"):
        panel.add("r", "loreft")


# --- what does not go together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "good"),
    [
        ("oft[block_size=8]", "oft[block_size=8]", False),
        ("lora", "oft[block_size=8]", False),
        ("oft[block_size=8]", "lora", True),
        ("ia3", "ia3", True),
        ("ia3[target_modules=['query'], feedforward_modules=['query']]", "ia3[target_modules=['query']]", True),
        ("ia3[target_modules=['query']]", "ia3[target_modules=['query'], feedforward_modules=['query']]", False),
    ],
)
def test_a_stack_drops_nothing(first: str, second: str, good: bool) -> None:
    """The second acts on what the first made, which is what both merged one after the other do."""
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, a=first, b=second)
    panel.active = "Stack(a, b)"
    if not good:
        with pytest.raises(UsageError, match="runs a layer anew"):
            hidden(model)
        return
    both = hidden(model)
    for name in "ab":
        panel.active = name
        assert not torch.allclose(hidden(model), both, atol=1e-4)


def test_two_adapters_of_one_layers_own_parameters_are_refused_in_a_stack_and_in_merging() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    layer = "encoder.layer.0.attention.self.query"
    for name, parameter in (("w", "weight"), ("b", "bias")):
        panel.add(name, TunedParameters(parameters=(f"{layer}.{parameter}",)))
    noisy(panel, l="lora")
    panel.active = "Stack(w, b)"
    with pytest.raises(UsageError, match="runs a layer anew"):
        hidden(model)
    panel.active = "Stack(l, w)"
    with pytest.raises(UsageError, match="works on"):
        panel.merge("l")


def test_layers_named_by_path_are_left_out_with_their_block() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    noisy(panel, a="lora[target_modules='.*intermediate.dense', leave_out=[0]]", t="lora[target_modules='all-linear']")
    assert not [place.key for place in panel.spliced("a").parts.places if "layer.0" in getattr(place, "path", "")]
    plain = hidden(model)
    panel.activate("t", skip_layers=range(2))
    assert torch.equal(hidden(model), plain)


@pytest.mark.parametrize("config", ["vera", "mtl_lora", "loha[r=2]", "oft[block_size=8]", "lora[use_gating=True]"])
def test_what_cannot_look_tokens_up_is_refused_when_it_is_added(config: str) -> None:
    kind, _, options = config.partition("[")
    panel = adapters(tiny_model("bert"))
    with pytest.raises(ModelError, match="embedding"):
        panel.add("a", f"{kind}[target_modules=['word_embeddings']{', ' + options if options else ']'}")


def test_a_fusion_is_of_the_last_adapters_of_its_children() -> None:
    panel = adapters(tiny_model("bert"))
    noisy(panel, a="seq_bn", b="seq_bn", c="seq_bn")
    panel.add_fusion("Fuse(a, b, c)")
    panel.active = "Fuse(a, b, c)"
    with pytest.raises(UsageError, match="was made for a, b, c"):
        panel.active = "Fuse(Stack(a, b), c)"


def test_two_panels_of_one_model_both_put_prefixes_in_front() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    plain = model(IDS).logits
    outer, inner = adapters(model), adapters(model.bert)
    noisy(outer, q="prefix_tuning_flat[prefix_length=2]")
    noisy(inner, p="prefix_tuning_flat[prefix_length=3]")
    inner.active = "p"
    first = model(IDS).logits
    outer.active = "q"
    both = model(IDS).logits
    assert not torch.allclose(both, first, atol=1e-4)
    inner.active = None
    second = model(IDS).logits
    outer.active, inner.active = None, "p"
    assert torch.equal(model(IDS).logits, first)
    outer.active = "q"
    torch.testing.assert_close(model(IDS).logits, both)
    inner.detach()
    torch.testing.assert_close(model(IDS).logits, second)
    outer.detach()
    assert torch.equal(model(IDS).logits, plain)


def test_what_is_made_of_adapters_is_as_exact_as_they_are() -> None:
    model = tiny_model("bert").bfloat16()
    panel = adapters(model)
    for name in "ab":
        panel.add(name, "lora", dtype=torch.float32)
    panel.average("c", ["a", "b"])
    assert {parameter.dtype for parameter in panel.module("c").parameters()} == {torch.float32}


# --- a Trainer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("head", [ClassificationHead(num_labels=2), CausalLMHead()])
def test_a_trainer_that_counts_labels_does_not_spoil_the_loss_of_a_head(head: Any, rows: int, tmp_path: Path) -> None:
    """transformers counts the labels that the model's own class would score: of one row for a classifier, none."""
    model = tiny_model("llama", "AutoModelForCausalLM")
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.add_head("a", head)
    panel.train("a")
    ids = IDS[0]
    label = 1 if isinstance(head, ClassificationHead) else ids
    arguments = transformers.TrainingArguments(
        tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=2, max_steps=1, report_to=[],
        save_strategy="no", logging_steps=1, use_cpu=True, label_names=["labels"], disable_tqdm=True, seed=0,
    )  # fmt: skip
    data = [{"input_ids": ids, "labels": label}] * (2 * rows)
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    with torch.no_grad():
        expected = float(model.eval()(ids[None], labels=torch.as_tensor(label)[None]).loss)
    trainer.train()
    (logged,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert math.isclose(float(logged), expected, rel_tol=1e-3)
    assert all(parameter.isfinite().all() for parameter in panel.module("a").parameters())
    # Whoever counts himself gets the mean over what he counted.
    labels = torch.as_tensor(label)[None]
    scored = 1 if isinstance(head, ClassificationHead) else len(ids) - 1
    with torch.no_grad():
        plain = model.eval()(ids[None], labels=labels).loss
        counted = model(ids[None], labels=labels, num_items_in_batch=torch.tensor(4 * scored)).loss
    torch.testing.assert_close(counted, plain / 4)
    panel.active = None
    with suppress(AttributeError):
        assert model.accepts_loss_kwargs


def test_a_head_that_answers_for_all_rows_of_a_parallel_counts_them_all() -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    panel = adapters(model)
    noisy(panel, a="lora", b="seq_bn")
    panel.add_head("h", ClassificationHead(num_labels=2))
    panel.activate("Parallel(a, b)", head="h")
    labels = torch.tensor([0, 1, 1])
    with torch.no_grad():
        plain, counted = model(IDS, labels=labels).loss, model(IDS, labels=labels, num_items_in_batch=3).loss
    torch.testing.assert_close(counted, plain)


def test_inputs_of_three_dimensions_are_flattened_for_choices_only() -> None:
    model = made("tapas", max_position_embeddings=64, type_vocab_sizes=[3, 16, 16, 2, 2, 4, 4], intermediate_size=64)
    panel = adapters(model)
    panel.add("a", "seq_bn")
    panel.add_head("a", ClassificationHead(num_labels=3))
    panel.active = "a"
    assert model(input_ids=IDS, token_type_ids=torch.zeros(3, 8, 7, dtype=torch.long)).logits.shape == (3, 3)
