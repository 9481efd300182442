"""Added embeddings (MAD-X 2.0): another vocabulary in front of and behind the same blocks."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import adaptergit
from adaptergit.errors import ModelError, PackageError, UsageError
from adaptergit.splice import BatchSplit, Parallel, adapters

AUTO = {
    "bert": transformers.AutoModelForMaskedLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "bart": transformers.AutoModelForSeq2SeqLM,
}
SMALL = {
    "t5": transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    ),
    "bart": transformers.BartConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        scale_embedding=True,
    ),
}
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(200))]


def tokenizer_of(words: list[str]) -> Any:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")


def model_of(name: str) -> nn.Module:
    if name in SMALL:
        return AUTO[name].from_config(SMALL[name]).eval()
    return AUTO[name].from_pretrained(GOLDEN / "bases" / name).eval()


def replaced(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module:
    """The reference: a copy of the model whose vocabulary was replaced for good, in transformers' own way."""
    twin = copy.deepcopy(model)
    adapters(twin).detach()
    twin.resize_token_embeddings(len(weight), mean_resizing=False)
    twin.get_input_embeddings().weight.data.copy_(weight)
    output = twin.get_output_embeddings()
    if output.weight is not twin.get_input_embeddings().weight:
        raise AssertionError("only for models that tie the two")
    if getattr(output, "bias", None) is not None:
        output.bias.data.zero_() if bias is None else output.bias.data.copy_(bias)
    if isinstance(getattr(twin, "final_logits_bias", None), torch.Tensor):
        twin.final_logits_bias.zero_()
    return twin


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart"])
def test_added_embeddings_compute_what_a_model_of_that_vocabulary_does(name: str) -> None:
    model = model_of(name)
    panel = adapters(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    panel.add_embeddings("gu", 500)
    ids = torch.randint(1, 500, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    panel.activate(None, embeddings="gu")
    assert panel.active_embeddings == "gu"
    with torch.no_grad():
        got = model(input_ids=ids, labels=labels)
        wanted = replaced(model, panel.embeddings_module("gu").input.weight)(input_ids=ids, labels=labels)
    assert got.logits.shape == (2, 7, 500)
    assert torch.allclose(got.logits, wanted.logits, atol=1e-5)
    assert torch.allclose(got.loss, wanted.loss, atol=1e-5)
    assert model.config.vocab_size != 500
    panel.activate(None)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises((IndexError, UsageError)):
        model(input_ids=ids)


def test_an_embedding_that_scales_goes_on_scaling() -> None:
    config = transformers.Gemma3TextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    panel = adapters(model)
    panel.add_embeddings("gu", 90)
    panel.activate(None, embeddings="gu")
    ids = torch.tensor([[80, 3, 89]])
    with torch.no_grad():
        got = model(ids).logits
        wanted = replaced(model, panel.embeddings_module("gu").input.weight)(ids).logits
    assert torch.allclose(got, wanted, atol=1e-5)


def test_models_that_do_not_tie_get_an_output_embedding_too() -> None:
    model = model_of("llama")
    panel = adapters(model)
    panel.add_embeddings("gu", 300)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (panel.embeddings_module("gu").output_weight is None) == tied
    panel.activate(None, embeddings="gu")
    assert model(torch.tensor([[299, 4]])).logits.shape == (1, 2, 300)
    generated = model.generate(torch.tensor([[299, 4]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape[1] > 2


def test_tokens_of_both_vocabularies_start_with_their_vectors() -> None:
    model = model_of("bert")
    panel = adapters(model)
    theirs = tokenizer_of([f"w{i}" for i in range(30)] + ["[PAD]", "[UNK]"])
    own = tokenizer_of(WORDS)
    panel.add_embeddings("gu", own, reference_tokenizer=theirs)
    base, new = model.get_input_embeddings().weight, panel.embeddings_module("gu").input.weight
    assert torch.equal(new[own.convert_tokens_to_ids("w7")], base[theirs.convert_tokens_to_ids("w7")])
    assert not torch.equal(new[own.convert_tokens_to_ids("w77")], base[theirs.convert_tokens_to_ids("w7")])
    panel.add_embeddings("kn", tokenizer_of(["w77", "[PAD]", "[UNK]"]), reference_tokenizer=own, reference="gu")
    assert torch.equal(panel.embeddings_module("kn").input.weight[0], new[own.convert_tokens_to_ids("w77")])


def test_training_reaches_the_adapter_and_its_embeddings_only() -> None:
    model = model_of("bert")
    panel = adapters(model)
    panel.add("gu", "seq_bn_inv")
    panel.add_embeddings("gu", tokenizer_of(WORDS))
    panel.train("gu", train_embeddings=True)
    ids = torch.randint(2, len(WORDS), (2, 6))
    model(input_ids=ids, labels=ids).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in reached} == {"gu", "gu:embeddings"}
    assert "adaptergit.gu:embeddings.input.weight" in reached
    panel.train("gu")
    assert not panel.embeddings_module("gu").input.weight.requires_grad
    model.eval()
    before = panel.embeddings_module("gu").input.weight.detach().clone()
    panel.train("gu", train_embeddings=True)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
    assert not torch.equal(before, panel.embeddings_module("gu").input.weight)


def test_they_are_saved_and_loaded_with_the_adapter_of_their_name(tmp_path: Path) -> None:
    model = model_of("bert")
    panel, words = adapters(model), tokenizer_of(WORDS)
    panel.add("gu", "seq_bn_inv")
    panel.add_embeddings("gu", words)
    panel.activate("gu")
    batch = words(["w3 w150", "w9 w199"], return_tensors="pt")
    with torch.no_grad():
        wanted = model(**batch).logits
    panel.save("gu", tmp_path / "gu")
    assert (tmp_path / "gu" / "tokenizer.json").is_file()
    other = model_of("bert")
    assert adaptergit.load(tmp_path / "gu", other) is other
    found = adapters(other)
    assert found.active_embeddings == "gu"
    tokenizer = found.tokenizer("gu")
    again = tokenizer(["w3 w150", "w9 w199"], return_tensors="pt")
    assert torch.equal(again["input_ids"], batch["input_ids"])
    with torch.no_grad():
        assert torch.equal(other(**again).logits, wanted)
    # A model that scores no tokens takes what it can use.
    plain = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert").eval()
    adaptergit.load(tmp_path / "gu", plain)
    assert adapters(plain).embeddings_module("gu").output_bias is None
    with torch.no_grad():
        plain(**again)
    # What was loaded can be renamed.
    adaptergit.load(tmp_path / "gu", other, name="hi", activate=False)
    assert adapters(other).embeddings == ["gu", "hi"]


def test_rows_that_would_read_different_embeddings_are_refused() -> None:
    model = model_of("bert")
    panel = adapters(model)
    for name in ("gu", "qa", "en"):
        panel.add(name, "seq_bn")
    panel.add_embeddings("gu", 300)
    panel.activate("Stack(gu, qa)")
    assert panel.active_embeddings == "gu"
    panel.activate("Stack(gu, Parallel(qa, en))")
    assert panel.active_embeddings == "gu"
    for composition in (BatchSplit("gu", "en", batch_sizes=1), Parallel("gu", "qa")):
        with pytest.raises(UsageError, match="different embeddings"):
            panel.activate(composition)
    panel.activate(BatchSplit("gu", "en", batch_sizes=1), embeddings="gu")
    with panel.using("qa"):
        model(torch.tensor([[3, 4]]))
        with pytest.raises(IndexError):
            model(torch.tensor([[299, 4]]))
    panel.remove_embeddings("gu")
    assert panel.active is None
    with pytest.raises(UsageError, match="no embeddings 'gu'"):
        panel.activate("qa", embeddings="gu")


@pytest.mark.parametrize("given", [None, "out/tokenizer", True, ["a"]])
def test_what_is_no_tokenizer_is_refused(given: Any) -> None:
    panel = adapters(model_of("bert"))
    with pytest.raises(UsageError, match="is not a tokenizer"):
        panel.add_embeddings("gu", given)
    if given is not None:
        with pytest.raises(UsageError, match="is not a tokenizer"):
            panel.add_embeddings("gu", tokenizer_of(WORDS), reference_tokenizer=given)
    assert panel.embeddings == []


def test_a_model_without_tokens_has_no_embeddings_to_add() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    with pytest.raises(ModelError, match="looks up no tokens"):
        adapters(transformers.ViTModel(config)).add_embeddings("gu", 10)


def test_copies_of_a_model_have_embeddings_of_their_own() -> None:
    model = model_of("bert")
    panel = adapters(model)
    panel.add_embeddings("gu", 300)
    panel.activate(None, embeddings="gu")
    twin = copy.deepcopy(model)
    ids = torch.tensor([[250, 4]])
    wanted = model(ids).logits
    with torch.no_grad():
        adapters(twin).embeddings_module("gu").input.weight.zero_()
    assert torch.equal(model(ids).logits, wanted)
    assert not torch.equal(twin(ids).logits, wanted)


def test_the_tokenizer_that_was_verified_is_the_one_that_is_read(tmp_path: Path) -> None:
    from adaptergit.splice.checkpoint import read_tokenizer

    tmp_path = tmp_path / "package"
    tokenizer_of(WORDS).save_pretrained(tmp_path)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    found = read_tokenizer(tmp_path, digests)
    assert found.get_vocab() == tokenizer_of(WORDS).get_vocab()
    tokenizer_of([*WORDS[::-1]]).save_pretrained(tmp_path)
    with pytest.raises(PackageError, match="changed while"):
        read_tokenizer(tmp_path, digests)
