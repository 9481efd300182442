"""Models that others have taken in hand: quantised, offloaded, sharded, replicated, wrapped in a pipeline."""

from __future__ import annotations

import copy
import faulthandler
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import multiprocessing, nn

import adaptergit
from adaptergit.errors import ModelError, UsageError
from adaptergit.splice import ClassificationHead, Stack, adapters

HANGS = 240  # seconds after which a process that should have taken five says where it stands, and ends
IDS = torch.randint(5, 60, (4, 8), generator=torch.Generator().manual_seed(3))
CONFIGS = ("seq_bn", "lora", "dora", "ia3", "prefix_tuning_flat", "loreft", "vera", "prompt_tuning", "seq_bn_inv")


def small() -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(
        vocab_size=72,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(small()).eval()


def noisy(panel: Any, *names: str) -> None:
    with torch.no_grad():
        for name in names:
            for parameter in panel.module(name).parameters():
                parameter.add_(torch.randn(parameter.shape).to(parameter) * 0.05)


def quantised(kind: str, folder: Path) -> Any:
    if kind == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        model = llama()
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return model
    pytest.importorskip("bitsandbytes")
    llama().save_pretrained(folder)
    chosen = {"load_in_8bit": True} if kind == "bnb8" else {"load_in_4bit": True}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.BitsAndBytesConfig(**chosen), device_map="cpu"
    ).eval()


@pytest.mark.parametrize("kind", ["torchao", "bnb8", "bnb4"])
def test_a_quantised_model_takes_every_method(kind: str, tmp_path: Path) -> None:
    model = quantised(kind, tmp_path)
    plain = model(IDS).logits.detach()
    panel = adapters(model)
    for name in CONFIGS:
        panel.add(name, name)
        noisy(panel, name)
        panel.train(name)
        logits = model(IDS).logits
        assert not torch.equal(logits[:, -8:], plain), name
        logits.float().pow(2).mean().backward()
        trained = [p for p in panel.module(name).parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None and p.is_floating_point() for p in trained), name
        model.eval()
    panel.activate(None)
    # The 4-bit layer has one kernel for the first call and another once its training mode was switched.
    assert torch.allclose(model(IDS).logits, plain, atol=5e-3 if kind == "bnb4" else 0.0)
    with pytest.raises(ModelError, match="quantised"):
        panel.merge("lora")


@pytest.mark.parametrize("kind", ["torchao", "bnb8", "bnb4"])
def test_dora_reads_the_matrix_that_a_quantised_layer_stands_for(kind: str, tmp_path: Path) -> None:
    """The magnitude starts as the norm of the rows, so a fresh DoRA changes nothing; codes would have other norms."""
    model = quantised(kind, tmp_path)
    panel = adapters(model)
    panel.add("d", "dora")
    for key, value in panel.module("d").state_dict().items():
        if key.endswith(".m"):
            block, role = int(key.split(".")[1]), key.split(".")[3]
            exact = getattr(llama().model.layers[block].self_attn, f"{role}_proj").weight
            assert torch.allclose(value.flatten().float(), exact.norm(dim=1), rtol=0.1), key


def test_an_offloaded_model_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole = llama()
    whole.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    offloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**places, "model.layers.1": "disk", "lm_head": "cpu"},
        offload_folder=tmp_path / "offloaded",
    ).eval()
    assert next(offloaded.model.layers[1].parameters()).is_meta
    panel = adapters(whole)
    for name in ("seq_bn", "lora", "loreft"):
        panel.add(name, name)
        noisy(panel, name)
        panel.activate(name)
        panel.save(name, tmp_path / name)
        with torch.no_grad():
            wanted = whole(IDS).logits
            adaptergit.load(tmp_path / name, offloaded)
            assert torch.allclose(offloaded(IDS).logits, wanted, atol=1e-5), name
        assert {p.device.type for p in adapters(offloaded).module(name).parameters()} == {"cpu"}
    with pytest.raises(ModelError, match="offloaded"):
        adapters(offloaded).merge("lora")
    with pytest.raises(ModelError, match="offloaded"):
        adapters(offloaded).add("d", "dora")
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(small())
    with pytest.raises(ModelError, match="meta device"):
        adapters(empty).add("x", "seq_bn")


def _train_sharded(rank: int, kind: str, folder: str) -> None:
    faulthandler.dump_traceback_later(HANGS, exit=True)  # processes that wait for each other wait for ever
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # not what the machine's name happens to stand for
    torch.distributed.init_process_group("gloo", f"file://{folder}/met", rank=rank, world_size=2)
    model = llama()
    panel = adapters(model)
    panel.add("x", "seq_bn")
    panel.add("l", "lora")
    noisy(panel, "x", "l")
    panel.train("x", "l")
    alone = copy.deepcopy(model)
    alone(IDS, labels=IDS).loss.backward()
    wanted = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    mine = IDS[rank * 2 : rank * 2 + 2]
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(mine, labels=mine).loss.backward()
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(mine, labels=mine).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}
    far = [name for name in wanted if name not in whole or not torch.allclose(whole[name], wanted[name], atol=1e-6)]
    (Path(folder) / f"{rank}").write_text(str([*far, *(found.keys() - wanted.keys())]))
    torch.distributed.barrier()
    os._exit(0)  # all is written and nobody waits; how gloo's threads end is not what is tested here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_get_the_gradients_of_one(kind: str, tmp_path: Path) -> None:
    multiprocessing.spawn(_train_sharded, (kind, str(tmp_path)), nprocs=2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[]", "[]"]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what nn.DataParallel copies a model with; only the sending to other devices is ours: here, to the CPU."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[tensor.clone() for tensor in tensors] for _ in devices],
    )
    return module.replicate


@pytest.mark.parametrize("config", [*CONFIGS, "union"])
def test_the_copies_of_data_parallel_run_their_adapters(config: str, copies: Any) -> None:
    model = llama()
    panel = adapters(model)
    panel.add("x", "seq_bn | lora" if config == "union" else config)
    panel.add("y", "seq_bn")
    noisy(panel, "x", "y")
    panel.train("x")
    panel.activate(Stack("x", "y"))
    model.eval()
    wanted = model(IDS).logits
    wanted.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    outputs: dict[int, Any] = {}

    def run(number: int, replica: Any) -> None:
        outputs[number] = replica(IDS[2 * number : 2 * number + 2]).logits

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(copies(model, [0, 1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = torch.cat([outputs[0], outputs[1]])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    found.square().mean().backward()
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(parameters[name].grad, gradient, atol=1e-7, rtol=1e-3)


def test_data_parallel_answers_with_a_head_and_keeps_its_hooks_to_itself(copies: Any) -> None:
    model = transformers.AutoModel.from_config(small()).eval()
    panel = adapters(model)
    panel.add("x", "seq_bn")
    panel.add_head("x", ClassificationHead(num_labels=3))
    noisy(panel, "x")
    panel.activate("x")
    wanted = model(IDS).logits
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda module, _args: seen.append(module))
    (replica,) = copies(model, [0])
    assert torch.equal(replica(IDS).logits, wanted)
    assert len(seen) == 1  # and not by the original as well
    assert seen[0] is not model
    assert torch.equal(model(IDS).logits, wanted)
    panel.detach()
    assert not any("replicate" in name for name in vars(model))


def test_using_does_not_reach_the_threads_of_data_parallel(copies: Any) -> None:
    model = llama()
    panel = adapters(model)
    panel.add("x", "seq_bn")
    with panel.using("x"), pytest.raises(UsageError, match=r"threads of nn\.DataParallel"):
        copies(model, [0])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_data_parallel_on_two_gpus() -> None:
    model = llama().cuda()
    panel = adapters(model)
    panel.add("x", "seq_bn")
    noisy(panel, "x")
    panel.train("x")
    model.eval()
    ids = IDS.cuda()
    torch.testing.assert_close(nn.DataParallel(model)(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_model_that_load_makes_shows_its_labels_in_a_pipeline(tmp_path: Path, monkeypatch: Any) -> None:
    base = tmp_path / "base"
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(base)
    core = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
    )
    panel = adapters(model)
    panel.add("x", "seq_bn")
    panel.train("x")
    model.eval()
    panel.save("x", tmp_path / "x")
    monkeypatch.setenv("ADAPTERGIT_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text(f'[base_models]\nbase = "{base}"\n')
    loaded = adaptergit.load(tmp_path / "x")
    shown = transformers.pipeline("text-classification", model=loaded, tokenizer=tokenizer, top_k=None)("good bad")
    wanted = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)("good bad")
    assert shown == wanted
    assert {answer["label"] for answer in shown[0]} == {"negative", "positive"}


def test_a_pipeline_shows_the_labels_of_a_head_beside_the_model_once_the_configuration_says_them() -> None:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    core = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    model = transformers.BertForSequenceClassification(config).eval()
    panel = adapters(model)
    panel.add("x")
    panel.add_head("x", ClassificationHead(num_labels=3, labels=("bad", "good", "neither")))
    panel.active = "x"
    model.config.id2label = dict(enumerate(panel.head_config("x").labels))
    shown = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)("good bad")
    assert {answer["label"] for answer in shown[0]} == {"bad", "good", "neither"}


@pytest.mark.parametrize("config", ["seq_bn", "lora", "prefix_tuning", "loreft", "seq_bn_inv"])
def test_autocast_and_half_precision(config: str) -> None:
    model = llama()
    panel = adapters(model)
    panel.add("x", config)
    panel.train("x")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None for p in panel.module("x").parameters() if p.requires_grad)
    half = llama().to(torch.bfloat16)
    adapters(half).add("x", config)
    adapters(half).train("x")
    assert {p.dtype for p in adapters(half).module("x").parameters()} == {torch.bfloat16}
    half(IDS, labels=IDS).loss.backward()


def test_save_pretrained_writes_the_base_alone(tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / "bert").eval()
    plain = model(IDS)[0]
    panel = adapters(model)
    panel.add("x", "seq_bn")
    panel.add_head("x", ClassificationHead(num_labels=2))
    panel.add_embeddings("x", 100)
    panel.activate("x")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS)[0], plain)
    assert again.config.vocab_size == model.config.vocab_size != 100
