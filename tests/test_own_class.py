"""Models that answer with the head of their own class: prompts and Parallel change what its head counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    HeadConfig,
    MultipleChoiceHead,
    Parallel,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    TaggingHead,
    adapters,
)

SIZES: dict[str, Any] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 37,
    },
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 37, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_ffn_dim": 37,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip
PROMPT = "prompt_tuning[prompt_length=3]"
BEFORE = "prompt_tuning[prompt_length=3,before_positions=True]"
BEHIND = "prompt_tuning[prompt_length=3,combine=prefix_after_bos]"


def made(name: str) -> Any:
    """Make a tiny model of a class."""
    kind = next(kind for kind in SIZES if name.lower().startswith(kind))
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SIZES[kind]
    )
    return getattr(transformers, name)(config).eval()


def tokens(batch: int = 2, seq: int = 6) -> torch.Tensor:
    """Make up tokens that end as BART wants them to."""
    ids = torch.randint(5, 99, (batch, seq), generator=torch.Generator().manual_seed(batch))
    ids[:, -1] = 2
    return ids


def noisy(panel: Any, name: str, config: str) -> None:
    panel.add(name, config)
    with torch.no_grad():
        for parameter in panel.module(name).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(ord(name[0]))) * 0.3)


# --- prompts ----------------------------------------------------------------------------------------------------------


def head_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what the class puts on its base."""
    found: Callable[[torch.Tensor], torch.Tensor] = next(
        getattr(model, name) for name in ("cls", "classifier", "qa_outputs", "lm_head", "score") if hasattr(model, name)
    )
    return found


@pytest.mark.parametrize("config", [PROMPT, BEFORE, BEHIND])
@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertForTokenClassification", "GPT2LMHeadModel", "LlamaForCausalLM"]
)
def test_a_prompt_has_no_logits_and_no_labels(name: str, config: str) -> None:
    model, ids = made(name), tokens()
    panel = adapters(model)
    noisy(panel, "p", config)
    panel.activate("p")
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids % 2)
    hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert hidden.shape[1] == 9
    kept = [0, 4, 5, 6, 7, 8] if config is BEHIND else [3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(output.logits, head_of(model)(hidden[:, kept]))
    shift = "LMHead" in name or "Causal" in name
    scores, labels = (output.logits[:, :-1], ids[:, 1:] % 2) if shift else (output.logits, ids % 2)
    torch.testing.assert_close(output.loss, F.cross_entropy(scores.flatten(0, 1), labels.flatten()))


def test_answers_are_positions_of_the_text() -> None:
    model, ids, first, last = made("BertForQuestionAnswering"), tokens(), torch.tensor([0, 2]), torch.tensor([1, 5])
    panel = adapters(model)
    noisy(panel, "p", PROMPT)
    panel.activate("p")
    wanted = {"start_positions": first, "end_positions": last}
    for head in (None, "p"):
        if head:
            panel.add_head("p", QuestionAnsweringHead())
            panel.activate("p")
        output = model(input_ids=ids, **wanted)
        assert output.start_logits.shape == output.end_logits.shape == (2, 6)
        losses = F.cross_entropy(output.start_logits, first), F.cross_entropy(output.end_logits, last)
        torch.testing.assert_close(output.loss, sum(losses) / 2)


def test_words_are_found_behind_a_prompt() -> None:
    model, ids = made("BertModel"), tokens(1)
    panel = adapters(model)
    noisy(panel, "p", PROMPT)
    panel.activate("p")
    hidden = model(input_ids=ids).last_hidden_state[:, 3:]
    panel.add_head("p", DependencyParsingHead())
    panel.activate("p")
    head = panel.head_module("p")
    found = model(input_ids=ids, word_starts=torch.tensor([[1, 2, 4]])).arc_preds[0, :2, :3]
    with torch.no_grad():
        words = torch.stack([hidden[:, 1], hidden[:, 2:4].mean(1)], 1)
        wanted = head.biaffine_arcs(words, torch.cat([hidden[:, :1], words], 1)).squeeze(1)[0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "LlamaForSequenceClassification"])
def test_the_last_token_is_read_behind_a_prompt(name: str) -> None:
    model, ids = made(name), tokens(1, 6)
    panel = adapters(model)
    noisy(panel, "p", PROMPT)
    panel.activate("p")
    hidden = model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model(input_ids=ids).logits, model.score(hidden[:, -1]))
    padded = torch.cat([ids, torch.zeros(1, 2, dtype=torch.long)], 1)
    mask = padded.ne(0).long()
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, model(input_ids=ids).logits)
    panel.add_head("p", ClassificationHead())
    panel.activate("p")
    beside = model(input_ids=padded, attention_mask=mask).logits
    torch.testing.assert_close(beside, panel.head_module("p")(hidden[:, -1]))


@pytest.mark.parametrize(
    "name", ["BartModel", "T5Model", "BartForSequenceClassification", "T5ForSequenceClassification"]
)
@pytest.mark.parametrize("config", [PROMPT, BEFORE])
def test_a_prompt_of_an_encoder_with_any_head(name: str, config: str) -> None:
    model, ids = made(name), tokens()
    panel = adapters(model)
    heads = [None] if "For" in name else [ClassificationHead(), QuestionAnsweringHead(), TaggingHead(), Seq2SeqLMHead()]
    noisy(panel, "p", config)
    for number, head in enumerate(heads):
        if head is not None:
            panel.add_head(f"h{number}", head)
        for order in (("p", head), (None, head), ("p", head)):  # whichever is switched on first
            panel.activate(order[0], head=None if head is None else f"h{number}")
            output = model(input_ids=ids)
        changed = ids.clone()
        changed[:, 1] = 7
        assert not torch.equal(output[0], model(input_ids=changed)[0])


def test_a_trainer_trains_prompts_of_a_language_model(tmp_path: Any) -> None:
    model = made("GPT2LMHeadModel")
    panel = adapters(model)
    panel.add("p", PROMPT)
    panel.train("p")
    before = panel.module("p").state_dict()
    before = {key: value.clone() for key, value in before.items()}
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no"
    )
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert any(not torch.equal(before[key], value) for key, value in panel.module("p").state_dict().items())


# --- Parallel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("BertForMaskedLM", lambda ids: ids),
        ("BertForSequenceClassification", lambda ids: ids[:, 0] % 2),
        ("GPT2LMHeadModel", lambda ids: ids),
        ("GPT2ForSequenceClassification", lambda ids: ids[:, 0] % 2),
        ("LlamaForSequenceClassification", lambda ids: ids[:, 0] % 2),
        ("BartForSequenceClassification", lambda ids: ids[:, 0] % 2),
        ("T5ForSequenceClassification", lambda ids: ids[:, 0] % 2),
        ("T5ForConditionalGeneration", lambda ids: ids),
    ],
)
def test_every_child_of_a_parallel_answers_and_is_trained(
    name: str, labels: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    model, ids = made(name), tokens()
    panel = adapters(model)
    alone = []
    for one in "ab":
        noisy(panel, one, "seq_bn[reduction_factor=2]")
        panel.activate(one)
        alone.append(model(input_ids=ids, labels=labels(ids)))
    panel.activate(Parallel("a", "b"))
    output = model(input_ids=ids, labels=labels(ids))
    torch.testing.assert_close(output.logits, torch.cat([one.logits for one in alone]))
    torch.testing.assert_close(output.loss, (alone[0].loss + alone[1].loss) / 2)
    panel.activate("a")
    assert model(input_ids=ids, labels=labels(ids)).logits.shape == alone[0].logits.shape, (
        "nothing of the call before is left"
    )


def test_after_an_error_rows_are_repeated_again() -> None:
    model, ids = made("GPT2ForSequenceClassification"), tokens()
    panel = adapters(model)
    for one in "ab":
        noisy(panel, one, "seq_bn")
    panel.activate(Parallel("a", "b"))
    with pytest.raises(IndexError):
        model(input_ids=ids + 1000)
    assert model.transformer(input_ids=ids).last_hidden_state.shape[0] == 4


@pytest.mark.parametrize("beams", [1, 3])
def test_two_language_model_heads_generate(beams: int) -> None:
    model, ids = made("GPT2Model"), tokens()
    model = transformers.GPT2LMHeadModel(model.config).eval()
    panel = adapters(model)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    alone = {}
    for one in "ab":
        noisy(panel, one, "seq_bn")
        panel.add_head(one, CausalLMHead())
        panel.activate(one)
        alone[one] = model.generate(ids, **options)
    panel.activate(Parallel("a", "b"))
    assert torch.equal(model.generate(ids, **options), torch.cat([alone["a"], alone["b"]]))
    panel.route(["b", "a"])
    assert torch.equal(model.generate(ids, **options), torch.stack([alone["b"][0], alone["a"][1]]))


@pytest.mark.parametrize("own", [False, True])
def test_labels_of_choices_are_as_many_as_the_questions(own: bool) -> None:
    model, ids, labels = made("BertModel"), tokens(6), torch.tensor([0, 1, 0])
    panel = adapters(model)
    for one in "ab":
        noisy(panel, one, "seq_bn")
        if own or one == "a":
            panel.add_head(one, MultipleChoiceHead(num_choices=2))
    alone = []
    for one in "ab":
        panel.activate(one, head=one if own else "a")
        alone.append(model(input_ids=ids.view(3, 2, -1), labels=labels))
    panel.activate(Parallel("a", "b"), head=["a", "b"] if own else "a")
    output = model(input_ids=ids.view(3, 2, -1), labels=labels)
    torch.testing.assert_close(output.logits, torch.cat([one.logits for one in alone]))
    torch.testing.assert_close(output.loss, (alone[0].loss + alone[1].loss) / (1 if own else 2))
    if own:
        panel.route(["a", "a", "b", "b", "a", "a"])
        routed = model(input_ids=ids, labels=labels)
        wanted = torch.stack([alone[0].logits[0], alone[1].logits[1], alone[0].logits[2]])
        torch.testing.assert_close(routed.logits, wanted)


@pytest.mark.parametrize("text", ["a", "Parallel(a, b)", "Route(a, a, b, b, a, a)"])
def test_choices_are_flattened_once_where_the_models_class_does_it_too(text: str) -> None:
    ids, labels = tokens(6), torch.tensor([0, 1, 0])
    found = []
    for name in ("BertModel", "BertForMultipleChoice"):
        model = made(name)
        panel = adapters(model)
        for one in "ab":
            torch.manual_seed(ord(one))
            noisy(panel, one, "seq_bn")
            panel.add_head(one, MultipleChoiceHead(num_choices=2))
        panel.activate(text)
        for shape in ((3, 2, 6), (6, 6)):
            given = ids.view(shape)
            mask = torch.ones_like(given)
            found.append(model(input_ids=given, attention_mask=mask, labels=labels))
            embedded = model.get_input_embeddings()(given)
            found.append(model(inputs_embeds=embedded, attention_mask=mask, labels=labels))
    for one in found[1:]:
        torch.testing.assert_close(one.logits, found[0].logits)
        torch.testing.assert_close(one.loss, found[0].loss)


def test_another_task_is_learnt_beside_a_class_of_choices() -> None:
    model, ids = made("BertForMultipleChoice"), tokens(4)
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", TaggingHead(num_labels=3))
    panel.activate("a")
    torch.testing.assert_close(model(ids).logits, panel.head_module("a")(model.bert(ids).last_hidden_state))
    embedded = model.bert.embeddings.word_embeddings(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(ids).logits)


def test_texts_and_pictures_of_different_numbers() -> None:
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    text = {**common, "vocab_size": 99, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**common, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model: nn.Module = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).eval()
    panel, given = adapters(model), {"input_ids": tokens(), "pixel_values": torch.randn(4, 3, 16, 16)}
    alone = []
    for one in "ab":
        noisy(panel, one, "seq_bn")
        panel.activate(one)
        alone.append(model(**given))
    panel.activate(Parallel("a", "b"))
    output = model(**given)
    for name in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(output[name], torch.cat([one[name] for one in alone]))
    panel.route(["a", "b"])
    with pytest.raises(UsageError, match="4 pictures for 2 rows"):
        model(**given)
    given["pixel_values"] = given["pixel_values"][:2]
    torch.testing.assert_close(model(**given).image_embeds[1], alone[1].image_embeds[1])


def test_a_tuple_where_the_configuration_asks_for_it() -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    for one in "ab":
        noisy(panel, one, "seq_bn")
        panel.add_head(one, ClassificationHead())
    panel.activate(Parallel("a", "b"))
    assert isinstance(model(input_ids=ids, return_dict=False), tuple)
    model.config.return_dict = False
    found, joined = model(input_ids=ids)
    assert [one.logits.shape for one in found] == [(2, 2), (2, 2)]
    assert torch.equal(joined, torch.cat([one.logits for one in found]))


def test_heads_of_words_may_be_as_many_as_the_words() -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", DependencyParsingHead(num_labels=3))
    panel.activate("a")
    arcs, relations = torch.tensor([[1, 2], [2, 1]]), torch.tensor([[1, 2], [2, 1]])
    given = {"input_ids": ids, "word_starts": torch.tensor([[1, 2, 4]] * 2)}
    short = model(**given, labels_arcs=arcs, labels_rels=relations).loss
    long = [F.pad(one, (0, 4), value=0) for one in (arcs, relations)]  # 0 is this model's padding
    torch.testing.assert_close(model(**given, labels_arcs=long[0], labels_rels=long[1]).loss, short)


# --- models that are their own base -----------------------------------------------------------------------------------


def bert_to_bert() -> Any:
    part = {"bert": transformers.BertConfig(vocab_size=99, **SIZES["bert"])}
    torch.manual_seed(0)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(part["bert"], part["bert"])
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return transformers.EncoderDecoderModel(config).eval()


@pytest.mark.parametrize(
    "head",
    [ClassificationHead(num_labels=3), TaggingHead(), QuestionAnsweringHead(), Seq2SeqLMHead(), MultipleChoiceHead()],
    ids=lambda head: head.type,
)
@pytest.mark.parametrize("vocabulary", [99, 32])
def test_a_head_reads_below_the_logits_of_a_model_that_is_its_own_base(vocabulary: int, head: HeadConfig) -> None:
    """Also where the logits are as wide as the hidden state."""
    found: list[Any] = []
    state: dict[str, Any] = {}
    config = transformers.T5Config(vocab_size=vocabulary, eos_token_id=2, pad_token_id=0, **SIZES["t5"])
    ids = tokens() % vocabulary
    for kind in (transformers.T5Model, transformers.T5ForConditionalGeneration):
        torch.manual_seed(0)
        model = kind(config).eval()
        model.load_state_dict(state, strict=False)
        state = model.state_dict()
        panel = adapters(model)
        for one in "ab":
            torch.manual_seed(ord(one))
            noisy(panel, one, "seq_bn[reduction_factor=2]")
            panel.add_head(one, head)
        for text in ("a", "Parallel(a, b)"):
            panel.activate(text)
            answer = model(input_ids=ids, output_hidden_states=True)
            found += answer.get("head_outputs") or [answer]
    for one, other in zip(found[:3], found[3:], strict=True):
        name = "start_logits" if "start_logits" in one else "logits"
        torch.testing.assert_close(other[name], one[name])


def test_a_head_for_tokens_generates_beside_an_encoder_and_a_decoder() -> None:
    model, ids = bert_to_bert(), tokens()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", Seq2SeqLMHead())
    panel.activate("a")
    with torch.no_grad():
        panel.head_module("a").decoder.weight.copy_(model.decoder.cls.predictions.decoder.weight)
    labels = tokens(2, 5)
    beside = model(input_ids=ids, labels=labels)
    assert beside.logits.shape == (2, 5, 99)
    beside.loss.backward()
    written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(written[:, 1], model(input_ids=ids, decoder_input_ids=written[:, :1]).logits[:, -1].argmax(-1))
    assert written.shape == (2, 5)
    panel.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("head", [ClassificationHead(), Seq2SeqLMHead(), DependencyParsingHead()], ids=lambda h: h.type)
def test_a_hidden_state_of_another_width_is_refused(head: HeadConfig) -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", head)
    panel.activate("a")
    model.register_forward_hook(lambda _m, _a, out: type(out)(last_hidden_state=out[0][..., :16]), prepend=True)
    with pytest.raises(ModelError, match="32 wide, and was given"):
        model(input_ids=ids, word_starts=torch.tensor([[1, 2, 4]] * 2))


def test_where_a_text_ends_must_be_known() -> None:
    model, ids = bert_to_bert(), tokens()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("a", ClassificationHead())
    panel.activate("a")
    assert model(input_ids=ids).logits.shape == (2, 2)
    model.config.eos_token_id = None
    with pytest.raises(ModelError, match="does not say with what") as caught:
        model(input_ids=ids)
    assert "eos_token_id" in str(caught.value.hint)


def test_a_head_reads_no_answers() -> None:
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    text = {**common, "vocab_size": 99, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**common, "image_size": 16, "patch_size": 8}, projection_dim=16
    )
    both, one = (
        transformers.CLIPModel(config).eval(),
        transformers.CLIPTextModelWithProjection(config.text_config).eval(),
    )
    for model in (both, one):
        panel = adapters(model)
        panel.add("a")
        panel.add_head("a", TaggingHead())
        panel.activate("a")
    with pytest.raises(ModelError, match="CLIPModel answers with logits_per_image") as caught:
        both(input_ids=tokens(), pixel_values=torch.randn(2, 3, 16, 16))
    assert "CLIPTextModel" in str(caught.value.hint)
    assert one(input_ids=tokens()).logits.shape == (2, 6, 2)


class Tokens:
    """As much of a tokenizer as embeddings need."""

    def __len__(self) -> int:
        return 120

    def get_vocab(self) -> dict[str, int]:
        return {f"token{number}": number for number in range(120)}


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_an_adapter_takes_its_embeddings_with_it() -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    panel.add("gu")
    panel.add_embeddings("gu", Tokens())
    panel.activate("gu")
    model(input_ids=ids + 15)
    panel.remove("gu")
    assert panel.embeddings == []
    panel.add("gu")
    panel.activate("gu")
    assert panel.active_embeddings is None


def test_a_head_without_an_adapter_can_be_removed() -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    panel.add("a")
    panel.add_head("lone", ClassificationHead())
    panel.activate("a", head="lone")
    assert model(input_ids=ids).logits.shape == (2, 2)
    panel.remove_head("lone")
    assert panel.heads == []
    assert model(input_ids=ids).last_hidden_state.shape == (2, 6, 32)
    with pytest.raises(UsageError, match="no head 'lone'"):
        panel.remove_head("lone")


def test_what_is_added_while_something_is_trained_is_frozen() -> None:
    model, ids = made("BertModel"), tokens()
    panel = adapters(model)
    panel.add("task")
    panel.train("task")
    panel.add("lang")
    panel.activate("Stack(lang, task)")
    model(input_ids=ids).last_hidden_state.sum().backward()
    assert all(p.grad is None for p in panel.module("lang").parameters())
    assert any(p.grad is not None for p in panel.module("task").parameters())
    panel.train("lang")
    assert all(p.requires_grad for p in panel.module("lang").parameters())


def test_a_head_that_is_added_later_is_trained_with_its_adapter() -> None:
    panel = adapters(made("BertModel"))
    panel.add("task")
    panel.add("lang")
    panel.train("task")
    panel.add_head("task", ClassificationHead(num_labels=2))
    panel.add_head("lang", ClassificationHead(num_labels=2))
    panel.add_fusion("Fuse(task, lang)")
    assert all(p.requires_grad for p in panel.head_module("task").parameters())
    assert not any(p.requires_grad for p in panel.head_module("lang").parameters())
    assert not any(p.requires_grad for p in panel.fusion_module("task,lang").parameters())
    panel.train_fusion("Fuse(task, lang)")
    assert all(p.requires_grad for p in panel.fusion_module("task,lang").parameters())


def test_reft_knows_the_padding_of_audio() -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, conv_dim=(32, 32),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config).eval()
    panel, sound = adapters(model), torch.randn(2, 400)
    noisy(panel, "r", "loreft[prefix_positions=2,suffix_positions=2]")
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 200:] = 0
    plain = model(sound, attention_mask=mask).last_hidden_state
    panel.activate("r")
    changed = model(sound, attention_mask=mask).last_hidden_state
    assert not torch.allclose(changed[0], plain[0])
    torch.testing.assert_close(model(sound).last_hidden_state[0], changed[0])
    assert not torch.allclose(changed[1], plain[1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("loreft[r=100]", "more than the model's hidden size, 32"),
        ("lora[target_modules='*bad(']", "regular expression"),
    ],
)
def test_values_that_fit_nothing_are_named(config: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adapters(made("BertModel")).add("a", config)


def test_veras_of_different_random_matrices_have_no_average() -> None:
    panel = adapters(made("BertModel"))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        panel.add(name, f"vera[init_weights_seed={seed}]")
    panel.average("ab", ["a", "b"])
    with pytest.raises(UsageError, match="different random matrices"):
        panel.average("ac", ["a", "c"])


class _Turned(nn.Module):
    """A block whose branch is computed with positions first, and one with them second."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(size), nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x).transpose(0, 1)))).transpose(0, 1)


class _TurnedModel(transformers.PreTrainedModel):
    config_class = transformers.PretrainedConfig
    base_model_prefix = "inner"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Turned(config.hidden_size) for _ in range(2))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


def test_a_model_that_keeps_positions_before_rows_lets_no_row_have_adapters_of_its_own() -> None:
    torch.manual_seed(0)
    config = transformers.PretrainedConfig(vocab_size=50, hidden_size=16)
    model = _TurnedModel(config).eval()
    panel = adapters(model)
    for name in "ab":
        panel.add(name)
    panel.active = "a"
    model(input_ids=torch.arange(12).view(2, 6))
    for composition in ("Parallel(a, b)", "BatchSplit(a, b, batch_sizes=[1, 1])"):
        with pytest.raises(UsageError, match="positions before rows"):
            panel.active = composition
    with pytest.raises(UsageError, match="positions before rows"):
        panel.route(["a", "b"])
    assert str(panel.active) == "a"


def test_a_table_that_nobody_looks_up_takes_no_lora() -> None:
    """In transformers 5, the stacks of T5 have tables of their own with the weights of ``shared``."""
    sizes = {"vocab_size": 70, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = transformers.T5Model(transformers.T5Config(**sizes))
    panel = adapters(model)
    looked_up = model.encoder.embed_tokens is model.shared  # transformers 4
    if looked_up:
        panel.add("a", "lora[target_modules=['shared']]")
    else:
        with pytest.raises(ModelError, match="never looks shared up"):
            panel.add("a", "lora[target_modules=['shared']]")
        panel.add("a", "lora[target_modules=['encoder.embed_tokens']]")
    assert panel.names == ["a"]
