"""Checkpoints written by us, run by the peers themselves, each in an environment of its own.

``ADAPTERGIT_ADAPTERS_PYTHON`` and ``ADAPTERGIT_PEFT_PYTHON`` name interpreters with ``adapters`` 1.3 (transformers 4.57) and
PEFT (transformers 5); ``make test-peers`` makes both. What cannot be written exactly is refused, which runs everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model
from golden import GOLDEN, base_model, cases, own_labels, prepare, read
from safetensors.torch import load_file, save_file

import adaptergit
from adaptergit.errors import AdaptergitWarning, ModelError, NotFoundError, PackageError, UsageError
from adaptergit.splice import adapters, parse_composition
from adaptergit.splice.config import parse_config
from adaptergit.splice.heads import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    HeadConfig,
    ImageClassificationHead,
    LanguageModelHead,
    MaskedLMHead,
    MultiLabelHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    TaggingHead,
)
from adaptergit.splice.methods import TunedParameters, Union
from adaptergit.splice.setup import fused
from adaptergit.trust.oms import sign_bundle, verify_bundle

IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
PYTHONS = {to: os.environ.get(f"ADAPTERGIT_{env}_PYTHON") for to, env in (("adapterhub", "ADAPTERS"), ("peft", "PEFT"))}
RESIDENT = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    asked, printed, error = json.loads(line), io.StringIO(), None
    sys.argv = ["-c", *asked["argv"]]
    try:
        with contextlib.redirect_stdout(printed):
            exec(asked["script"], {"__name__": "__main__", "asked": asked["given"]})
    except Exception:
        error = traceback.format_exc()
    print(json.dumps({"printed": printed.getvalue(), "error": error}), file=answers, flush=True)
"""
"""Runs one script after another: importing a peer takes longer than what it is asked."""
RUN = {
    "adapterhub": """
import sys, torch, adapters
from safetensors.torch import load_file, save_file
base, folder, out = sys.argv[1:4]
model = adapters.AutoAdapterModel.from_pretrained(base, attn_implementation="eager").eval()
name = model.load_adapter(folder, use_safetensors=True)
model.set_active_adapters(name)
model.active_head = name if name in model.heads else None
seen = []
model.base_model.register_forward_hook(lambda m, a, output: seen.append(output[0].clone()))
with torch.no_grad():
    found = model(**load_file(out + ".in"))
found = found.get("logits", next(iter(found.values()))) if model.active_head else seen[0]
save_file({"out": found.contiguous()}, out)
""",
    "peft": """
import sys, torch, peft, transformers
from safetensors.torch import load_file, save_file
base, folder, out = sys.argv[1:4]
model = transformers.AutoModel.from_pretrained(base, attn_implementation="eager")
model = peft.PeftModel.from_pretrained(model, folder).eval()
with torch.no_grad():
    found = model(**load_file(out + ".in"))[0]
save_file({"out": found.contiguous()}, out)
""",
}
ADAPTERHUB = [
    ("bert", "seq_bn[reduction_factor=4]"),
    ("bert", "double_seq_bn[reduction_factor=4, ln_before=True, use_gating=True, scaling=learned]"),
    ("bert", "compacter[reduction_factor=4]"),
    ("bert", "seq_bn_inv[reduction_factor=4]"),
    ("bert", "lora[r=4, alpha=8, output_lora=True]"),
    ("bert", "dora[r=4, dora_norm=adapters]"),
    ("bert", "ia3"),
    ("bert", "vera[r=4]"),
    ("bert", "prefix_tuning[prefix_length=3]"),
    ("bert", "prompt_tuning"),
    ("bert", "loreft[r=2]"),
    ("bert", "noreft[suffix_positions=2]"),
    ("bert", "unipelt"),
    ("bert", "seq_bn|seq_bn[mh_adapter=True, output_adapter=False]"),
    ("bert", "seq_bn[leave_out=[0]]|par_bn[leave_out=[1]]"),
    ("gpt2", "lora[r=4, attn_matrices=['q', 'k']]"),
    ("gpt2", "par_bn[reduction_factor=4]"),
    ("llama", "lora[intermediate_lora=True]"),
    ("llama", "prefix_tuning_flat[prefix_length=3]"),
    ("roberta", "double_seq_bn_inv[reduction_factor=4]"),
    ("t5", "seq_bn[reduction_factor=4, leave_out=[2]]"),
    ("t5", "prefix_tuning[prefix_length=3, use_gating=True]"),
    ("t5", "unipelt"),
    ("bart", "double_seq_bn[reduction_factor=4, cross_adapter=True]"),
]
PEFT = [
    ("bert", "lora[r=4, alpha=16, intermediate_lora=True]"),
    ("bert", "lora[r=4, use_rslora=True]"),
    ("bert", "dora[r=4]"),
    ("bert", "ia3"),
    ("bert", "vera[r=4, alpha=12]"),
    ("bert", "prompt_tuning[before_positions=True]"),
    ("bert", "loha[r=4]"),
    ("bert", "lokr[r=2, factor=4, decompose_both=True]"),
    ("bert", "oft[block_size=8]"),
    ("bert", "oft[block_size=0, r=4, neumann_terms=5, block_share=True]"),
    ("bert", "boft[block_size=8]"),
    ("bert", "hra[r=4]"),
    ("bert", "fourierft[n_frequency=50]"),
    ("llama", "miss[r=4]"),
    ("gpt2", "lora[r=4, attn_matrices=['q', 'v']]"),
    ("gpt2", "lora[output_lora=True, attn_matrices=['k']]"),
    ("gpt2", "lora[lora_bias=True, attn_matrices=['q', 'v']]"),
    ("deberta", "lora[lora_bias=True]"),
    ("llama", "lora[r=2, attn_matrices=['q', 'k', 'v']]"),
    ("llama", "prompt_tuning"),
]


def made(base: str, config: str) -> tuple[Any, Any]:
    folder = GOLDEN / "bases" / base
    if not folder.is_dir():
        pytest.skip(f"{base} is not in this set of cases")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    panel = adapters(model)
    panel.add("a", config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in panel.module("a").parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    panel.active = "a"
    return model, panel


def inputs(model: Any) -> dict[str, torch.Tensor]:
    if model.config.model_type == "vit":
        size = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))}
    head = adapters(model).active_head
    kind = adapters(model).head_config(head).type if isinstance(head, str) else ""
    extra = {"decoder_input_ids": IDS.clone()} if model.config.is_encoder_decoder else {}
    if kind == "dependency_parsing":
        extra["word_starts"] = torch.tensor([[0, 2, 3, 7]] * len(IDS))
    return {"input_ids": IDS, **extra}


def ours(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model))[0]


RUNNING: dict[str, subprocess.Popen[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def peers() -> Iterator[None]:
    yield
    for process in RUNNING.values():
        process.communicate(timeout=60)
    RUNNING.clear()


def ask(to: str, script: str, *argv: str, given: Any = None) -> str:
    """Let a peer run a script, and return what it printed."""
    if not PYTHONS[to]:
        pytest.skip(f"ADAPTERGIT_{'ADAPTERS' if to == 'adapterhub' else 'PEFT'}_PYTHON is not set")
    if to not in RUNNING:
        command = [*str(PYTHONS[to]).split(), "-c", RESIDENT]
        RUNNING[to] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = RUNNING[to]
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps({"script": script, "argv": argv, "given": given}), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline() or '{"error": "it is gone: its last words are on stderr"}')
    assert answer["error"] is None, answer["error"][-2000:]
    return str(answer["printed"])


def theirs(
    to: str, base: str, folder: Path, tmp_path: Path, given: dict[str, torch.Tensor] | None = None, script: str = ""
) -> torch.Tensor:
    out = tmp_path / "out.safetensors"
    save_file(given or {"input_ids": IDS}, str(out) + ".in")
    ask(to, script or RUN[to], str(GOLDEN / "bases" / base), str(folder), str(out))
    return load_file(out)["out"]


@pytest.mark.parametrize(("base", "config"), ADAPTERHUB)
def test_adapters_computes_the_same(base: str, config: str, tmp_path: Path) -> None:
    model, _ = made(base, config)
    expected = ours(model)
    adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")
    again = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / base, attn_implementation="eager").eval()
    unsaid = pytest.warns(AdaptergitWarning, match="NoReFT or DiReFT") if "noreft" in config else nullcontext()
    with unsaid:
        adaptergit.load(tmp_path / "a", again)
    assert torch.allclose(ours(again), expected, atol=2e-5), "our own reader"
    assert torch.allclose(theirs("adapterhub", base, tmp_path / "a", tmp_path, inputs(model)), expected, atol=5e-5)


HEADS = [
    ("bert", ClassificationHead(num_labels=3, labels=("x", "y", "z"))),
    ("bert", MultiLabelHead(num_labels=3, layers=1, use_pooler=True, bias=False)),
    ("bert", TaggingHead(num_labels=3, labels=("O", "B", "I"), activation_function="gelu")),
    ("bert", QuestionAnsweringHead()),
    ("bert", MultipleChoiceHead(num_choices=3)),
    ("bert", MaskedLMHead()),
    ("bert", DependencyParsingHead(num_labels=3)),
    ("gpt2", CausalLMHead()),
    ("t5", Seq2SeqLMHead()),
    ("vit", ImageClassificationHead(num_labels=3)),
]


@pytest.mark.parametrize(("base", "head"), HEADS, ids=lambda value: getattr(value, "type", value))
def test_adapters_reads_a_head(base: str, head: HeadConfig, tmp_path: Path) -> None:
    model, panel = made(base, "seq_bn[reduction_factor=4]")
    panel.add_head("a", head)
    panel.activate("a")
    with torch.no_grad():
        for parameter in panel.head_module("a").parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
        if isinstance(head, LanguageModelHead):
            with pytest.raises(UsageError, match="adapters ties the output embedding"):
                adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")
            panel.head_module("a").decoder.weight.copy_(model.get_input_embeddings().weight)
        found = model(**inputs(model))
    expected = found["logits"] if "logits" in found else next(iter(found.values()))
    adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")
    again = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / base, attn_implementation="eager")
    adaptergit.load(tmp_path / "a", again)
    assert type(adapters(again).head_config("a")) is type(head)
    assert torch.allclose(theirs("adapterhub", base, tmp_path / "a", tmp_path, inputs(model)), expected, atol=5e-5)


@pytest.mark.parametrize("head", [TaggingHead(bias=False), Seq2SeqLMHead(embedding_size=8)], ids=lambda head: head.type)
def test_a_head_that_adapters_has_no_option_for_is_not_written(head: HeadConfig, tmp_path: Path) -> None:
    model, panel = made("bert", "seq_bn[reduction_factor=4]")
    panel.add_head("a", head)
    with pytest.raises(UsageError, match=r"adapters has no .* head with"):
        adaptergit.export(model, "a", tmp_path / "a", to="adapterhub")


@pytest.mark.parametrize(("base", "config"), PEFT)
def test_peft_computes_the_same(base: str, config: str, tmp_path: Path) -> None:
    model, _ = made(base, config if "prompt" not in config else "prompt_tuning[before_positions=True]")
    expected = ours(model)
    adaptergit.export(model, "a", tmp_path / "a", to="peft")
    again = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / base, attn_implementation="eager").eval()
    adaptergit.load(tmp_path / "a", again)
    assert torch.allclose(ours(again), expected, atol=2e-5), "our own reader"
    found = theirs("peft", base, tmp_path / "a", tmp_path)
    assert torch.allclose(found, expected[:, -found.shape[1] :], atol=5e-5)


THERE_AND_BACK = """
import json, sys, torch, peft, transformers
answers = {}
for case, kind, options, base, *folders in asked:
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    outs = []
    for folder in folders:
        torch.manual_seed(0)
        model = getattr(transformers, kind).from_pretrained(base, attn_implementation="eager", **options)
        model = peft.PeftModel.from_pretrained(model, folder).eval()
        extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            outs.append(model(input_ids=ids, **extra)[0])
    answers[case] = (outs[0] - outs[1]).abs().max().item()
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_peft_computes_the_same_with_what_came_back(tmp_path: Path) -> None:
    """Golden checkpoints of PEFT's become packages and checkpoints of PEFT's again."""
    asked, known = [], cases("peft")
    if not known:
        pytest.skip("the golden checkpoints of PEFT are not here: ADAPTERGIT_GOLDEN")
    for case in map(read, known):
        if len(case["adapters"]) > 1 or "layer_replication" in str(case):
            continue
        (record,) = case["adapters"].values()
        source, there, back = (
            GOLDEN / "public" / case["id"] / record["checkpoint"]["path"],
            tmp_path / case["id"] / "there",
            tmp_path / case["id"] / "back",
        )
        model = base_model(case)
        try:
            adaptergit.convert(source, there, to="adaptergit", base=model)
        except (PackageError, NotFoundError):
            continue  # refused: see test_golden.py
        adapters(model).detach()
        adaptergit.convert(there, back, to="peft", base=model)
        asked.append(
            (
                case["id"],
                case["load_base_with"],
                own_labels(case),
                str(GOLDEN / "bases" / case["base"]),
                str(source),
                str(back),
            )
        )
    assert len(asked) > 3
    printed = ask("peft", THERE_AND_BACK, given=asked)
    answers = json.loads(printed.splitlines()[-1])
    assert answers == {case: pytest.approx(0, abs=2e-5) for case, *_ in asked}


ADAPTERS_THERE_AND_BACK = """
import json, sys, torch, adapters, transformers
from pathlib import Path
from safetensors.torch import load_file
answers = {}
for case, base, io, options, *folders in asked:
    given = {key[3:]: value for key, value in load_file(io).items() if key.startswith("in.")}
    outs = []
    for folder in folders:
        torch.manual_seed(0)
        model = transformers.AutoModel.from_pretrained(base, attn_implementation="eager").eval()
        adapters.init(model)
        safe = Path(folder, "adapter.safetensors").is_file()
        model.set_active_adapters(model.load_adapter(folder, use_safetensors=safe, **(options if not outs else {})))
        with torch.no_grad():
            found = model(**given)
        outs.append(found["last_hidden_state" if "last_hidden_state" in found else 0])
    answers[case] = (outs[0] - outs[1]).abs().max().item()
print(json.dumps(answers))
"""
FAILS_THERE = ("distilbert__prompt_tuning",)


@pytest.mark.slow
def test_adapters_computes_the_same_with_what_came_back(tmp_path: Path) -> None:
    """Golden checkpoints of one adapter in a bare model are read, and become checkpoints of ``adapters`` again."""
    asked, refused = [], set()
    for case in map(read, cases("adapters")):
        if len(case["adapters"]) > 1 or case["load_base_with"] != "AutoModel" or case["heads"]:
            continue
        if case["id"] in FAILS_THERE:
            continue
        folder, back = GOLDEN / "public" / case["id"], tmp_path / case["id"]
        ((name, record),) = case["adapters"].items()
        try:
            adaptergit.export(prepare(case, folder).model, name, back, to="adapterhub")
        except UsageError as error:
            refused.add(error.what)
            continue
        paths = GOLDEN / "bases" / case["base"], folder / "io.safetensors", folder / record["checkpoint"]["path"], back
        base, io, source, written = map(str, paths)
        asked.append((case["id"], base, io, record["checkpoint"].get("load_kwargs") or {}, source, written))
    assert refused <= {
        "adapters does not store that a ReFT is DiReFT, and loads it as NoReFT",
        "adapters does not know models of the type 'opt'",
        "adapters does not know models of the type 'xmod'",
    }
    printed = ask("adapterhub", ADAPTERS_THERE_AND_BACK, given=asked)
    answers = json.loads(printed.splitlines()[-1])
    assert answers == {case: pytest.approx(0, abs=5e-5) for case, *_ in asked}


PATTERNS = """
import json, sys, torch, peft, transformers
from safetensors.torch import save_file
for base, folder, options in asked:
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(base, attn_implementation="eager")
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    # Saved, patterns are in another order.
    again = peft.PeftModel.from_pretrained(kind.from_pretrained(base, attn_implementation="eager"), folder).eval()
    with torch.no_grad():
        save_file({"out": again(input_ids=ids)[0].contiguous()}, folder + ".out")
"""


def test_patterns_match_the_paths_that_peft_matches(tmp_path: Path) -> None:
    llama = {"target_modules": ["q_proj", "up_proj"]}
    gpt2 = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    asked = [
        ("llama", llama | {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 3}}),
        ("llama", llama | {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3}}),
        ("llama", llama | {"alpha_pattern": {"^layers.0.self_attn.q_proj": 3}}),  # matches nothing
        ("llama", llama | {"alpha_pattern": {"q_proj": 3, "^model.layers.0.*": 5}}),  # the first one counts
        ("llama", llama | {"alpha_pattern": {"^model.layers.1.*": 3}, "rank_pattern": {"^model.layers.1.*": 2}}),
        ("gpt2", gpt2 | {"alpha_pattern": {r"transformer\.h\.1\..*": 2}}),
    ]
    cases = [(str(GOLDEN / "bases" / base), str(tmp_path / str(i)), how) for i, (base, how) in enumerate(asked)]
    ask("peft", PATTERNS, given=cases)
    for base, folder, options in cases:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        adaptergit.load(folder, model)
        assert torch.allclose(ours(model), load_file(f"{folder}.out")["out"], atol=2e-5), options


SAVED = """
import json, sys, torch, peft, transformers
from safetensors.torch import save_file
for auto, base, folder, kind, options, saving in asked:
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    def fresh():
        torch.manual_seed(0)
        return getattr(transformers, auto).from_pretrained(base, attn_implementation="eager")
    model = peft.get_peft_model(fresh(), getattr(peft, kind)(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder, **saving)
    again = peft.PeftModel.from_pretrained(fresh(), folder).eval()
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    if model.config.model_type == "vit":
        continue
    with torch.no_grad():
        save_file({"out": again(input_ids=ids, **extra)[0].contiguous()}, folder + ".out")
"""
Case = tuple[str, str, str, dict[str, Any], dict[str, Any]]
"""Class of transformers, base, PEFT's configuration and its options, options of save_pretrained."""


def saved_all(cases: dict[str, Case], folder: Path) -> None:
    """Let PEFT make and save checkpoints, and what the model says that it has loaded each into again."""
    asked = [
        (auto, str(GOLDEN / "bases" / base), str(folder / name), *rest) for name, (auto, base, *rest) in cases.items()
    ]
    ask("peft", SAVED, given=asked)


def saved(base: str, kind: str, options: dict[str, Any], folder: Path) -> torch.Tensor:
    """One of them, of the bare model."""
    saved_all({folder.name: ("AutoModel", base, kind, options, {})}, folder.parent)
    return load_file(f"{folder}.out")["out"]


def base_for(auto: str, base: str) -> Any:
    torch.manual_seed(0)  # for the head
    return getattr(transformers, auto).from_pretrained(GOLDEN / "bases" / base, attn_implementation="eager").eval()


CLASSES, TOKENS, CAUSAL, TEXTS = (
    f"AutoModelFor{kind}" for kind in ("SequenceClassification", "TokenClassification", "CausalLM", "Seq2SeqLM")
)
QUERY = {"target_modules": ["query"]}
OF_PEFT: dict[str, Case] = {
    "rank-stabilised adalora": (
        "AutoModel", "bert", "AdaLoraConfig", QUERY | {"init_r": 6, "target_r": 3, "total_step": 9, "use_rslora": True}, {},
    ),
    "oft of three terms": (
        "AutoModel", "bert", "OFTConfig", QUERY | {"oft_block_size": 8, "num_cayley_neumann_terms": 3}, {},
    ),
    "loha with ranks": (
        "AutoModel", "bert", "LoHaConfig", {"target_modules": ["query", "value"], "r": 4, "rank_pattern": {"query": 2}}, {},
    ),
    "lokr with alphas": (
        "AutoModel", "bert", "LoKrConfig", {"target_modules": ["query", "value"], "r": 4, "alpha_pattern": {"query": 2}}, {},
    ),
    "prompt of classes": (CLASSES, "bert", "PromptTuningConfig", {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"}, {}),
    "prefix of tags": (TOKENS, "bert", "PrefixTuningConfig", {"num_virtual_tokens": 3, "task_type": "TOKEN_CLS"}, {}),
    "p-tuning of classes": (
        CLASSES, "bert", "PromptEncoderConfig",
        {"num_virtual_tokens": 3, "task_type": "SEQ_CLS", "encoder_hidden_size": 16}, {},
    ),
    "prompt of an encoder": (
        TEXTS, "t5", "PromptTuningConfig",
        {"num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1}, {},
    ),
    "biases and a head": (CLASSES, "bert", "LoraConfig", QUERY | {"bias": "all", "task_type": "SEQ_CLS"}, {}),
    "tokens and their table": (
        CAUSAL, "llama", "LoraConfig", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]},
        {"save_embedding_layers": True},
    ),
    "nested modules": ("AutoModel", "bert", "LoraConfig", QUERY | {"modules_to_save": ["layer.1.output"]}, {}),
}  # fmt: skip


def test_what_peft_made_computes_the_same_here_and_there_again(tmp_path: Path) -> None:
    saved_all(OF_PEFT, tmp_path)
    asked = []
    for name, (auto, base, *_) in OF_PEFT.items():
        model = base_for(auto, base)
        adaptergit.load(tmp_path / name, model, name="p")
        found, expected = ours(model), load_file(tmp_path / f"{name}.out")["out"]
        assert torch.allclose(found, expected[:, -found.shape[1] :], atol=2e-5), name
        adaptergit.export(model, "p", tmp_path / f"{name} again", to="peft")
        folders = [str(tmp_path / f"{name}{end}") for end in ("", " again")]
        asked.append((name, auto, {}, str(GOLDEN / "bases" / base), *folders))
    printed = ask("peft", THERE_AND_BACK, given=asked)
    assert json.loads(printed.splitlines()[-1]) == dict.fromkeys(OF_PEFT, pytest.approx(0, abs=2e-5))


REFUSED: dict[str, tuple[Case, str]] = {
    "prompt of both stacks": (
        (TEXTS, "t5", "PromptTuningConfig", {"num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM"}, {}),
        "half of these prompts into the decoder",
    ),
    "prefix of a decoder that counts": (
        (TEXTS, "bart", "PrefixTuningConfig", {"num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM"}, {}),
        "counts those of its embed_positions by itself",
    ),
    "oft of blocks of two sizes": (
        ("AutoModel", "bert", "OFTConfig", {"r": 4, "oft_block_size": 0, "target_modules": ["query", "output.dense"]}, {}),
        "blocks of several sizes",
    ),
    "oft of an embedding": (
        ("AutoModel", "bert", "OFTConfig", {"oft_block_size": 8, "target_modules": ["word_embeddings"]}, {}),
        "of an embedding",
    ),
    "frequencies by layer": (
        (
            "AutoModel", "bert", "FourierFTConfig",
            {"target_modules": ["query", "value"], "n_frequency": 30, "n_frequency_pattern": {"value": 20}}, {},
        ),
        "a number of frequencies for each layer",
    ),
    "convolutions": (
        ("AutoModel", "vit", "LoraConfig", {"target_modules": ["projection"]}, {}),
        "an adapter of a convolution",
    ),
    "layers again": (
        (CAUSAL, "llama", "LoraConfig", {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}, {}),
        "layer_replication",
    ),
}  # fmt: skip


def test_what_peft_computes_otherwise_is_refused_with_the_reason(tmp_path: Path) -> None:
    saved_all({name: case for name, (case, _) in REFUSED.items()}, tmp_path)
    for name, ((auto, base, *_), why) in REFUSED.items():
        with pytest.raises((PackageError, ModelError), match=why):
            adaptergit.load(tmp_path / name, base_for(auto, base))


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_base_model_in_peft_is_refused(start: str, tmp_path: Path) -> None:
    options = {"r": 4, "target_modules": ["query"], "init_lora_weights": start}
    expected = saved("bert", "LoraConfig", options, tmp_path / "p")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert", attn_implementation="eager").eval()
    if start in ("gaussian", "orthogonal"):
        adaptergit.load(tmp_path / "p", model)
        assert torch.allclose(ours(model), expected, atol=2e-5)
    else:
        with pytest.raises(PackageError, match="changes the weights of the base model"):
            adaptergit.load(tmp_path / "p", model)


@pytest.mark.parametrize("options", [{}, {"eps": 0.4}, {"eps": 100.0}, {"eps": 0.4, "block_share": True}])
def test_constrained_oft_of_peft_computes_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"oft_block_size": 8, "target_modules": ["query"], "coft": True}
    expected = saved("bert", "OFTConfig", options, tmp_path / "p")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert", attn_implementation="eager").eval()
    adaptergit.load(tmp_path / "p", model)
    assert torch.allclose(ours(model), expected, atol=2e-5)
    adaptergit.export(model, "p", tmp_path / "again", to="peft")
    assert torch.allclose(theirs("peft", "bert", tmp_path / "again", tmp_path), expected, atol=5e-5)


BIASED = [
    ("LoraConfig", {"r": 4, "bias": "lora_only"}, True),
    ("LoraConfig", {"r": 4, "bias": "all"}, True),
    ("VeraConfig", {"r": 4, "bias": "vera_only"}, True),
    ("FourierFTConfig", {"n_frequency": 50, "bias": "fourier_only"}, True),
    ("LoraConfig", {"r": 4, "bias": "lora_only", "use_dora": True}, False),
    ("LoraConfig", {"r": 4, "bias": "all", "use_dora": True}, False),
    ("OFTConfig", {"oft_block_size": 8, "bias": "oft_only"}, False),
    ("BOFTConfig", {"boft_block_size": 4, "bias": "boft_only"}, False),
    ("HRAConfig", {"r": 4, "bias": "hra_only"}, False),
]


@pytest.mark.parametrize(("kind", "options", "read"), BIASED)
def test_tuned_biases_of_peft_are_read_where_the_adapter_only_adds(
    kind: str, options: dict[str, Any], read: bool, tmp_path: Path
) -> None:
    expected = saved("bert", kind, options | {"target_modules": ["query"]}, tmp_path / "p")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert", attn_implementation="eager").eval()
    if read:
        adaptergit.load(tmp_path / "p", model)
        assert torch.allclose(ours(model), expected, atol=2e-5)
    else:
        with pytest.raises(PackageError, match=r"with tuned biases of the same layers .*query\.bias"):
            adaptergit.load(tmp_path / "p", model)


SETUP = """
import sys, torch, adapters
from safetensors.torch import load_file, save_file
base, folder, out = sys.argv[1:4]
model = adapters.AutoAdapterModel.from_pretrained(base, attn_implementation="eager").eval()
model.load_adapter_setup(folder, set_active=True, use_safetensors=True)
model.active_head = None
seen = []
model.base_model.register_forward_hook(lambda m, a, output: seen.append(output[0].clone()))
with torch.no_grad():
    model(**load_file(out + ".in"))
save_file({"out": seen[0].contiguous()}, out)
"""


@pytest.mark.parametrize(
    "composition", ["Stack(a, b)", "Fuse(a, b)", "Stack(a, Fuse(b, c))", "Split(a, b, splits=[3, 4])"]
)
def test_adapters_reads_a_set_up(composition: str, tmp_path: Path) -> None:
    model, panel = made("bert", "seq_bn[reduction_factor=4]")
    for name in ("b", "c"):
        panel.add(name, "seq_bn[reduction_factor=8]")
        with torch.no_grad():
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * 0.2)
    wanted = parse_composition(composition)
    for key in fused(wanted):
        panel.add_fusion(key.split(","))
    panel.activate(wanted)
    expected = ours(model)
    panel.save_setup(tmp_path / "package", name="my-setup")
    again = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert", attn_implementation="eager").eval()
    made_of = adaptergit.convert(tmp_path / "package", tmp_path / "theirs", to="adapterhub", base=again)
    assert set(made_of.adapters) == set(wanted.names())
    adapters(again).detach()
    adaptergit.load(tmp_path / "theirs", again)
    assert torch.allclose(ours(again), expected, atol=2e-5), "our own reader"
    assert torch.allclose(
        theirs("adapterhub", "bert", tmp_path / "theirs", tmp_path, script=SETUP), expected, atol=5e-5
    )


@pytest.mark.parametrize(
    ("to", "config"),
    [
        ("adapterhub", "lora[use_rslora=True]"),
        ("adapterhub", "dora"),
        ("adapterhub", "loha[r=2]"),
        ("adapterhub", "direft"),
        ("adapterhub", "lora|ia3[selfattn_lora=False]"),
        ("adapterhub", "seq_bn[inv_adapter=glow, inv_adapter_reduction_factor=2]"),
        ("peft", "seq_bn"),
        ("peft", "lora[use_gating=True]"),
        ("peft", "dora[dora_norm=adapters]"),
        ("peft", "lora[lora_bias=True, target_modules=['embeddings.word_embeddings']]"),
        ("peft", "prompt_tuning"),
        ("nothing", "seq_bn"),
    ],
)
def test_what_is_not_exact_is_not_written(to: str, config: str, tmp_path: Path) -> None:
    model, _ = made("bert", config)
    with pytest.raises(UsageError):
        adaptergit.export(model, "a", tmp_path / "a", to=to)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("config", ["dora", "oft[block_size=8]"])
def test_tuned_biases_of_what_multiplies_are_not_written_for_peft(config: str, tmp_path: Path) -> None:
    query = "encoder.layer.0.attention.self.query"
    model = tiny_model("bert")
    adapters(model).add("a", Union((parse_config(config), TunedParameters((f"{query}.bias",)))))
    with pytest.raises(UsageError, match="PEFT does not multiply tuned biases"):
        adaptergit.export(model, "a", tmp_path / "a", to="peft")
    assert not (tmp_path / "a").exists()


MODEL_SIGNING = os.environ.get("ADAPTERGIT_MODEL_SIGNING_PYTHON")


@pytest.mark.skipif(MODEL_SIGNING is None, reason="ADAPTERGIT_MODEL_SIGNING_PYTHON is not set: make test-peers")
@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_openssf_bundles_go_both_ways(tmp_path: Path, curve: str) -> None:
    private, public, folder = tmp_path / "ec.pem", tmp_path / "ec.pub", tmp_path / "package"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(private)], check=True)
    subprocess.run(["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)], check=True)
    folder.mkdir()
    for name in ("card.yaml", "manifest.json"):
        (folder / name).write_text(name)
    bundle = folder / "model.sig"

    def theirs(verb: str, option: str, key: Path) -> int:
        argv = [str(MODEL_SIGNING), "-m", "model_signing", verb, "key", str(folder), "--signature", str(bundle)]
        return subprocess.run([*argv, option, str(key)], check=False).returncode

    bundle.write_bytes(sign_bundle(folder, "sst2", private))
    assert theirs("verify", "--public_key", public) == 0
    (folder / "card.yaml").write_text("changed")
    assert theirs("verify", "--public_key", public) != 0
    bundle.unlink()
    assert theirs("sign", "--private_key", private) == 0
    assert verify_bundle(folder, public) == ("card.yaml", "manifest.json")


def test_trainable_tokens_of_peft_compute_the_same(tmp_path: Path) -> None:
    options = {"token_indices": [6, 9, 12], "target_modules": ["word_embeddings"]}
    expected = saved("bert", "TrainableTokensConfig", options, tmp_path / "p")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert", attn_implementation="eager").eval()
    adaptergit.load(tmp_path / "p", model)
    assert torch.allclose(ours(model), expected, atol=2e-5)
    adaptergit.export(model, "p", tmp_path / "again", to="peft")
    assert torch.allclose(theirs("peft", "bert", tmp_path / "again", tmp_path), expected, atol=2e-5)
