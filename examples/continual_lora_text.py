"""Which sequences of text tasks does a language model learn badly? LoRA with and without CoTo, under CLDyB.

    python examples/continual_lora_text.py --output runs/text

Made-up languages have four topics each, alike in some languages and unlike in others. A tiny language model learns to
name the topics of two; four others are the pool. A search builds a sequence of tasks that is hard for LoRA, for LoRA
with CoTo, and for class means of the frozen model's features. Then all of them are trained on it again with fresh
seeds, and on a random sequence. For a model of your own, replace `build_model`, for your own texts `made_up_texts`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import typer

from thurl.cli.output import table
from thurl.continual.candidates import Candidates
from thurl.continual.closed_form import SimpleCIL
from thurl.continual.evaluator import Evaluator
from thurl.continual.gradient import LMLoRA
from thurl.continual.label_scores import LanguageModelEncoder
from thurl.continual.mdp import SearchSettings
from thurl.continual.prefix_store import PrefixStore
from thurl.continual.replay import replay
from thurl.continual.report import write_report
from thurl.continual.sampling import keyed_generator
from thurl.continual.search import random_sequence, search_sequence
from thurl.continual.sequence_file import sequence_document, write_sequence
from thurl.continual.text_data import text_data
from thurl.continual.text_pool import TextSample, make_text_pool
from thurl.text.prompts import PromptStyle
from thurl.text.questions import Question
from thurl.text.tiny import build_tiny_language_model, pretrain


STYLE = PromptStyle("{question}\n")


def made_up_texts(language: int, *, texts: int, seed: int = 0) -> list[TextSample]:
    """Texts of four topics; of their words `language` in five are those of all topics, the rest their own."""
    rng = random.Random(f"{seed} {language}")
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", 9)
    words = ["".join(rng.sample(letters, 4)) for _ in range(24)]
    found = []
    for topic in range(4):
        name, own = words[20 + topic], words[4 * topic : 4 * topic + 4]
        for _ in range(texts):
            drawn = [rng.choice(words[16:20] if rng.randrange(5) < language else own) for _ in range(5)]
            found.append(TextSample(f"language{language}", name, " ".join(drawn)))
    return found


def build_model(output: Path, *, steps: int, seed: int) -> tuple[Any, Any]:
    """A model that knows what it is to name a topic, of two languages that are not in the pool."""
    model, tokenizer = build_tiny_language_model(seed, hidden=32, layers=2)
    samples = [sample for language in (1, 2) for sample in made_up_texts(language, texts=200, seed=seed + 1)]
    random.Random(seed).shuffle(samples)
    questions = [Question(STYLE.prompt(Question(s.text, s.dataset)), s.dataset, s.class_name) for s in samples]
    pretrain(model, tokenizer, questions, output, steps=steps, batch=32, learning_rate=3e-3, seed=seed)
    return model.eval(), tokenizer


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--pretraining", type=int, default=200, help="steps")
    parser.add_argument("--epochs", type=int, default=10, help="per task")
    parser.add_argument("--simulations", type=int, default=5, help="of the search, per task")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = build_model(given.output, steps=given.pretraining, seed=given.seed)
    pool = make_text_pool(sample for language in range(4) for sample in made_up_texts(language, texts=40))
    encoder = LanguageModelEncoder(model)
    data = text_data(pool, encoder, tokenizer, style=STYLE)
    options = {"target_modules": "q_proj,v_proj", "learning_rate": 3e-3, "epochs": given.epochs}
    learners = [SimpleCIL(), LMLoRA(encoder, **options), LMLoRA(encoder, coto=True, **options)]
    settings = SearchSettings(tasks=3, classes_per_task=3, starts=12, clusters=3, simulations=given.simulations,
                              seed=given.seed)  # fmt: skip
    store = PrefixStore(given.output / "kept")
    with Evaluator(data, learners, seed=given.seed, store=store) as evaluator:
        found = search_sequence(evaluator, settings)
        by_chance = random_sequence(Candidates(evaluator, settings), keyed_generator(given.seed, "random"))
        document = sequence_document(evaluator, settings, found)
    write_sequence(given.output / "hard.json", document)
    runs = {name: replay(data, learners, tasks, seeds=(1001, 1002), search_seed=given.seed, store=store)
            for name, tasks in (("found", found.tasks), ("random", by_chance))}  # fmt: skip
    write_report(given.output / "hard.html", document, runs["found"])
    rows = [[sequence, learner, *(entry["mean"][key] for key in ("aa", "ala", "afm"))]
            for sequence, run in runs.items() for learner, entry in run["learners"].items()]  # fmt: skip
    typer.echo(f"{found.cost.trainings} trainings in {found.wall:.0f} s; on texts that no search has seen:")
    table(["sequence", "learner", "AA", "ALA", "AFM"], rows)
    return runs


if __name__ == "__main__":
    main()
