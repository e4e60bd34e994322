"""The LightningDataModule: tokenises once, keeps the tokens in Arrow, and makes batches."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as L
import tokenizers
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import PretrainedConfig

from cyberlm.config.schema import DataConfig, EvaluationConfig, OnLongPrompt
from cyberlm.data.batches import (
    AnswerCollator,
    EpochBatches,
    PlannedDataset,
    collate_scoring,
    count_batches,
    plan_batches,
)
from cyberlm.data.splits import Split
from cyberlm.runtime import distributed
from cyberlm.runtime.cache import writable
from cyberlm.runtime.errors import DataError, ModelError, Problem
from cyberlm.runtime.progress import say_once, track
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example

TOKENISED_AT_ONCE = 256
IDS = datasets.List(datasets.Value("int64"))


def encode_questions(
    questions: Sequence[Example], prompt: Prompt, max_length: int, cache: Path | None = None
) -> list[EncodedQuestion]:
    """Token ids of every question; kept as an Arrow file in `cache` under a fingerprint of prompt and questions.

    Raises:
        DataError: If a prompt with its longest answer passes `max_length`: nothing is ever cut.
    """
    encoded = _tokenised(questions, prompt, cache)
    _count_control_tokens(questions, prompt)
    long = _too_long(questions, encoded, prompt, max_length)
    if long:
        raise _length_error(questions, long, max_length)
    return encoded


def encode_split(
    split: Split, prompt: Prompt, config: DataConfig, cache: Path | None = None
) -> tuple[Split, dict[str, list[EncodedQuestion]]]:
    """Token ids of every part, and the split without the training questions that are too long.

    Those are left out, and listed in `Split.too_long`, only with `data.on_long_prompt=skip`. A question that figures
    are made of, in validation or test, is never left out.

    Raises:
        DataError: If a prompt with its longest answer passes `data.max_length` and may not be left out.
    """
    encoded = {name: _tokenised(part, prompt, cache) for name, part in split.parts().items()}
    _count_control_tokens([question for part in split.parts().values() for question in part], prompt)
    for name, part in split.parts().items():
        long = _too_long(part, encoded[name], prompt, config.max_length)
        kept = [row for row, question in enumerate(part) if question.id not in long]
        if long and name != "train":
            advice = f"\nQuestions of the {name} set are never left out: figures are made of them."
            raise _length_error(part, long, config.max_length, advice)
        if long and (config.on_long_prompt is OnLongPrompt.error or not kept):
            advice = "\nOr leave them out of training, counted and listed: data.on_long_prompt=skip"
            raise _length_error(part, long, config.max_length, advice)
        if long:
            encoded[name] = [encoded[name][row] for row in kept]
            listed = tuple(f"{question}: {length} tokens" for question, length in long.items())
            split = replace(split, train=tuple(part[row] for row in kept), too_long=listed)
    return split, encoded


def _count_control_tokens(questions: Sequence[Example], prompt: Prompt) -> None:
    holding = [question.id for question in questions if prompt.holds_control_token(question)]
    if holding:
        count = f"{len(holding)} questions contain" if len(holding) > 1 else "1 question contains"
        say_once(f"{count} text that looks like control tokens, encoded as plain text ({', '.join(holding[:3])})")


def _tokenised(questions: Sequence[Example], prompt: Prompt, cache: Path | None) -> list[EncodedQuestion]:
    key = _tokens_key(questions, prompt)
    file = cache / f"{key}.arrow" if cache and _can_keep(cache) else None
    table = (file and _kept(file)) or _tokenise(questions, prompt, key, file)
    known: dict[int, int] = {}

    def numbers(row: list[int]) -> tuple[int, ...]:
        return tuple(map(known.setdefault, row, row))  # one object a number: a token takes 8 bytes instead of 36

    return [
        EncodedQuestion(
            numbers(row["prompt_ids"]),
            tuple(map(numbers, row["option_ids"])),
            numbers(row["option_chars"]),
            row["gold"],
            tuple((first, end) for first, end in row["turns"]),
        )
        for row in table
    ]


def _tokenise(questions: Sequence[Example], prompt: Prompt, key: str, file: Path | None) -> datasets.Dataset:
    """A table of the fields of `EncodedQuestion`, written to `file`."""
    datasets.disable_progress_bars()
    with track("Tokenising", len(questions), "questions") as advance:

        def tokenise(rows: dict[str, list[int]]) -> dict[str, list[Any]]:
            encoded = prompt.encode([questions[row] for row in rows["row"]])
            advance(len(encoded), sum(len(item.prompt_ids) for item in encoded))
            return {field.name: [getattr(item, field.name) for item in encoded] for field in fields(EncodedQuestion)}

        return datasets.Dataset.from_dict({"row": list(range(len(questions)))}).map(
            tokenise,
            batched=True,
            batch_size=TOKENISED_AT_ONCE,
            remove_columns=["row"],
            cache_file_name=str(file) if file else None,
            new_fingerprint=key,
            features=datasets.Features(
                {"prompt_ids": IDS, "option_ids": datasets.List(IDS), "option_chars": IDS}
                | {"gold": datasets.Value("int64"), "turns": datasets.List(IDS)}
            ),
        )


def _tokens_key(questions: Sequence[Example], prompt: Prompt) -> str:
    """SHA-256 of everything that the tokens of these questions depend on."""
    names = (field.name for field in fields(EncodedQuestion))
    versions = (transformers.__version__, tokenizers.__version__, *names)
    rendered = ([prompt.task.prompt(item), *prompt.answers(item), item.gold, *item.turns] for item in questions)
    made_of = map(json.dumps, chain([prompt.fingerprint(), prompt.tokenizer_hash, *versions], rendered))
    key = hashlib.sha256(f"[{next(made_of)}".encode())
    for text in made_of:  # one JSON list, which is never whole in memory
        key.update(f", {text}".encode())
    key.update(b"]")
    return key.hexdigest()


def _can_keep(cache: Path) -> bool:
    """Test that tokens can be kept there; elsewhere they are made each time."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return writable(cache)


def _kept(file: Path) -> datasets.Dataset | None:
    """Kept tokens; torn ones are removed, and made again."""
    try:
        return datasets.Dataset.from_file(str(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # Arrow's errors are ValueErrors
        file.unlink()
        return None


def scored_length(question: EncodedQuestion) -> int:
    """Tokens of the prompt with its longest option."""
    return len(question.prompt_ids) + max(len(ids) for ids in question.option_ids)


def _too_long(
    questions: Sequence[Example], encoded: Sequence[EncodedQuestion], prompt: Prompt, max_length: int
) -> dict[str, int]:
    """Ids of the questions that pass `max_length`, with their tokens."""
    lengths = (scored_length(item) + len(prompt.end_ids) for item in encoded)
    pairs = zip(questions, lengths, strict=True)
    return {question.id: length for question, length in pairs if length > max_length}


def _length_error(questions: Sequence[Example], long: dict[str, int], max_length: int, advice: str = "") -> DataError:
    return DataError(
        f"{len(long)} of {len(questions)} questions are longer than data.max_length={max_length} tokens:",
        [Problem(f"{name}: {length} tokens") for name, length in long.items()],
        f"Type data.max_length={max(long.values())}, or take these questions out of the file: nothing is cut.{advice}",
    )


def check_model_limits(
    shape: PretrainedConfig, prompt: Prompt, questions: Iterable[EncodedQuestion], evaluation: EvaluationConfig
) -> None:
    """Refuses questions that a model has no embedding for: their tokens, or so many positions.

    Raises:
        ModelError: With the tokens that are outside, or the longest question.
    """
    text = shape.get_text_config(decoder=True)
    used, longest = set(prompt.end_ids), 0
    new = evaluation.max_new_tokens if evaluation.generate else 0
    for item in questions:
        used.update(item.prompt_ids, *item.option_ids)
        longest = max(longest, scored_length(item) + len(prompt.end_ids), len(item.prompt_ids) + new)
    outside = sorted(token for token in used if token >= text.vocab_size)
    if outside:
        named = zip(prompt.tokenizer.convert_ids_to_tokens(outside), outside, strict=True)
        allowed = f"below {text.vocab_size}, the model's vocab_size"
        raise ModelError(
            "The tokenizer gives tokens that the model has no embedding for:",
            [Problem(f"{token!r} is number {number}", allowed) for token, number in named],
            "Take the tokenizer that was saved with the model, or the model that was resized for this one.",
        )
    most = getattr(text, "max_position_embeddings", None)
    if most is not None and longest > most:
        raise ModelError(
            "The questions are longer than the model reads:",
            [Problem(f"{longest} tokens, the answer included", f"max_position_embeddings={most}")],
            "Take these questions out, or leave them out of training: data.max_length=... data.on_long_prompt=skip",
        )


class QuestionData(L.LightningDataModule):
    """Training batches bucketed by length, and validation batches sorted by it.

    Args:
        accumulate: Micro-batches in an optimizer step, those of all processes: the loss is normalised over them.
        share_prefix: Whether what all examples of a batch begin with is encoded once.
        share_validation: Whether each process validates on its share of the questions, or on all.
    """

    def __init__(
        self,
        config: DataConfig,
        train: Sequence[EncodedQuestion],
        validation: Sequence[EncodedQuestion],
        end_ids: Sequence[int],
        accumulate: int,
        seed: int,
        *,
        share_prefix: bool,
        share_validation: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        rows = distributed.rows_of_rank(len(validation)) if share_validation else range(len(validation))
        self.train_questions = train
        self.validation_questions = [turn for row in rows for turn in validation[row].each_turn()]
        self.collator = AnswerCollator(end_ids, share_prefix=share_prefix)
        self.accumulate, self.seed = accumulate, seed
        self.batches_done = 0
        self.resumed_epoch: int | None = None
        self.batches: EpochBatches | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        lengths = [(len(ids), len(trained)) for ids, trained in map(self.collator.example, self.train_questions)]
        self.batches = EpochBatches(
            [length for length, _ in lengths],
            [labels for _, labels in lengths],
            self.config.micro_batch_size,
            self.accumulate,
            self.seed,
            distributed.rank(),
            distributed.world_size(),
        )
        self._go_on()
        return DataLoader(
            PlannedDataset(self.train_questions),
            batch_sampler=self.batches,  # type: ignore[arg-type]  # yields planned batches, not lists of rows
            collate_fn=self.collator,  # type: ignore[arg-type]
            num_workers=self.config.num_workers,
            generator=torch.Generator(),  # else each new iterator would draw from the numbers that dropout draws from
        )

    def val_dataloader(self) -> DataLoader[Any]:
        plan = plan_batches(list(map(scored_length, self.validation_questions)), self.config.max_batch_tokens)
        return DataLoader(
            self.validation_questions,  # type: ignore[arg-type]
            batch_sampler=plan,
            collate_fn=collate_scoring,
            num_workers=self.config.num_workers,
            generator=torch.Generator(),
        )

    @property
    def accumulated(self) -> int:
        """Micro-batches of each process in an optimizer step."""
        return -(-self.accumulate // distributed.world_size())

    def count_batches(self) -> int:
        """Micro-batches of each process in an epoch."""
        size = self.config.micro_batch_size
        return count_batches(len(self.train_questions), size, self.accumulate, distributed.world_size())

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the next micro-batch, and how many of that epoch each process has been given."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress
        state = {"epoch": loop.epoch_progress.total.ready, "batches_done": 0, "accumulated": self.accumulated}
        if not progress.is_last_batch:
            state |= {"epoch": loop.epoch_progress.total.ready - 1, "batches_done": progress.current.ready}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of any number of processes: checkpoints are written between two optimizer steps."""
        steps = -(-state_dict["batches_done"] // state_dict.get("accumulated", self.accumulated))
        self.resumed_epoch, self.batches_done = state_dict["epoch"], steps * self.accumulated
        self._go_on()

    def _go_on(self) -> None:
        """Starts where the checkpoint ended. With FSDP2 Lightning reads it after the loader has been made."""
        if self.batches is None:
            return
        self.batches.start, self.batches_done = self.batches_done, 0
        if self.resumed_epoch is not None:  # Lightning builds the iterator before it calls set_epoch
            self.batches.set_epoch(self.resumed_epoch)
