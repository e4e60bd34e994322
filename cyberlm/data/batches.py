"""Batches of questions: a function of (seed, epoch), so that a run can be repeated."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from cyberlm.models.prefix_cache import shared_length
from cyberlm.tasks.prompts import EncodedQuestion

BATCHES_IN_A_BUCKET = 32
"""Questions are sorted by length within a shuffled bucket of so many batches: little padding, and still random."""


class AnswerBatch(NamedTuple):
    """Right-padded training examples, with the places whose next token is trained on.

    Padding needs no mask in attention: it is behind an example's tokens, which see only what is before them.

    Attributes:
        prefix_ids: (P,) int64, tokens that all examples begin with (`cyberlm.models.prefix_cache`); may be empty.
        input_ids: (B, T) int64, what follows; the last token of an example is a target only, so it is not an input.
        attention_mask: (B, T) int64, 1 on tokens.
        answer_index: (N,) int64, places in the flattened (B*T) hidden states that predict an answer token.
        targets: (N,) int64, the answer tokens, end of turn included.
        step_label_tokens: Answer tokens of the whole optimizer step that this micro-batch belongs to.
        questions: Examples; a filler (`cyberlm.data.batches`) has none. Counts are ints: to read one from a GPU, the
            host would wait for it.
        tokens: Of the examples, those that they share counted in each.
    """

    prefix_ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    answer_index: Tensor
    targets: Tensor
    step_label_tokens: int
    questions: int
    tokens: int

    @property
    def computed_tokens(self) -> int:
        """Places that go through the model: padding included, shared tokens once."""
        return self.input_ids.numel() + len(self.prefix_ids)


class ScoringBatch(NamedTuple):
    """Prompts with their options, right-padded.

    Attributes:
        prefix_ids: (S,) int64, tokens that all prompts begin with (`cyberlm.models.prefix_cache`); may be empty.
        prompt_ids, prompt_mask: (B, P) int64, what follows.
        option_ids, option_mask: (B, K, O) int64; a question with fewer than K options has rows that are all padding.
        option_chars: (B, K) int64, characters of each option's answer.
        gold: (B,) int64.
    """

    prefix_ids: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    option_ids: Tensor
    option_mask: Tensor
    option_chars: Tensor
    gold: Tensor

    @property
    def longest(self) -> int:
        """Places that a row takes in a cache, padding included."""
        return len(self.prefix_ids) + self.prompt_ids.shape[1] + self.option_ids.shape[2] - 1

    def to_device(self, device: torch.device) -> "ScoringBatch":
        return ScoringBatch(*(part.to(device) for part in self))

    def without_prefix(self) -> "ScoringBatch":
        """The same batch with whole prompts."""
        prefix = self.prefix_ids.expand(len(self.gold), -1)
        ids, mask = torch.cat([prefix, self.prompt_ids], 1), torch.cat([torch.ones_like(prefix), self.prompt_mask], 1)
        return self._replace(prefix_ids=self.prefix_ids[:0], prompt_ids=ids, prompt_mask=mask)


def collate_scoring(questions: Sequence[EncodedQuestion]) -> ScoringBatch:
    """Pads B questions into one batch."""
    most = max(len(item.option_ids) for item in questions)
    options = [ids for item in questions for ids in (*item.option_ids, *[()] * (most - len(item.option_ids)))]
    option_ids, option_mask = (part.reshape(len(questions), most, -1) for part in pad_right(options))  # (B, K, O)
    prompts = [item.prompt_ids for item in questions]
    shared = shared_length(prompts)
    prefix_ids = torch.tensor(prompts[0][:shared], dtype=torch.long)
    prompt_ids, prompt_mask = pad_right([ids[shared:] for ids in prompts])
    option_chars, _ = pad_right([item.option_chars for item in questions])
    gold = torch.tensor([item.gold for item in questions])
    return ScoringBatch(prefix_ids, prompt_ids, prompt_mask, option_ids, option_mask, option_chars, gold)


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, T) padded with 0 on the right, and their mask (B, T): masks, not the pad id, say what is padding."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers sorted by length, longest first, cut where padding included a batch would pass `max_tokens`."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


class PlannedBatch(NamedTuple):
    """Rows of one micro-batch, and the answer tokens of the whole optimizer step that it belongs to."""

    rows: tuple[int, ...]
    step_label_tokens: int


def plan_epoch(
    lengths: Sequence[int], label_tokens: Sequence[int], batch_size: int, accumulate: int, seed: int, epoch: int
) -> list[PlannedBatch]:
    """Length-bucketed micro-batches of one epoch, each question once.

    The batch with the longest question comes first in epoch 0: if memory does not suffice, the run fails at once.

    Args:
        lengths: Tokens of each question with its answer.
        label_tokens: Tokens of each question that are trained on.
        batch_size: Questions in a micro-batch; the last one may be smaller.
        accumulate: Micro-batches in an optimizer step; the last step may have fewer.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), batch_size * BATCHES_IN_A_BUCKET):
        bucket = sorted(shuffled[start : start + batch_size * BATCHES_IN_A_BUCKET], key=lambda row: -lengths[row])
        batches += [bucket[k : k + batch_size] for k in range(0, len(bucket), batch_size)]
    batches = [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]
    if epoch == 0:
        longest = max(range(len(batches)), key=lambda k: max(lengths[row] for row in batches[k]))
        batches.insert(0, batches.pop(longest))
    planned = []
    for start in range(0, len(batches), accumulate):
        step = batches[start : start + accumulate]
        total = sum(label_tokens[row] for rows in step for row in rows)
        planned += [PlannedBatch(tuple(rows), total) for rows in step]
    return planned


def batches_of_rank(planned: Sequence[PlannedBatch], accumulate: int, rank: int, size: int) -> list[PlannedBatch]:
    """One process's micro-batches of an epoch: of each optimizer step, every `size`-th.

    The same number in all processes, since they meet after each: where a last step's do not divide, some get a filler,
    a micro-batch without questions.

    Args:
        accumulate: Micro-batches in an optimizer step, those of all processes.
    """
    part: list[PlannedBatch] = []
    for start in range(0, len(planned), accumulate):
        step = planned[start : start + accumulate]
        own = list(step[rank::size])
        part += own + [PlannedBatch((), step[0].step_label_tokens)] * (-(-len(step) // size) - len(own))
    return part


def count_batches(questions: int, batch_size: int, accumulate: int, size: int) -> int:
    """Micro-batches of each of `size` processes in an epoch, fillers too; arguments as `plan_epoch` has them."""
    steps, rest = divmod(-(-questions // batch_size), accumulate)
    return steps * -(-accumulate // size) + -(-rest // size)


class EpochBatches:
    """Batch sampler that can start in the middle of an epoch, as a resumed run does.

    Lightning calls `.sampler.set_epoch`; `start` is spent on the first pass.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        label_tokens: Sequence[int],
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.lengths, self.label_tokens = list(lengths), list(label_tokens)
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self.rank, self.size = rank, size
        self.epoch, self.start = 0, 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return count_batches(len(self.lengths), self.batch_size, self.accumulate, self.size)

    def __iter__(self) -> Iterator[PlannedBatch]:
        start, self.start = self.start, 0
        planned = plan_epoch(self.lengths, self.label_tokens, self.batch_size, self.accumulate, self.seed, self.epoch)
        yield from batches_of_rank(planned, self.accumulate, self.rank, self.size)[start:]


class PlannedDataset(Dataset[Any]):
    """Gives a planned batch's questions to the collator at once (torch calls `__getitems__` with what is sampled)."""

    def __init__(self, questions: Sequence[EncodedQuestion]) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitems__(self, planned: PlannedBatch) -> tuple[list[EncodedQuestion], int]:
        return [self.questions[row] for row in planned.rows], planned.step_label_tokens


class AnswerCollator:
    """Makes an `AnswerBatch`: labels on the gold answer, on a conversation's earlier ones, and on their ends of turn.

    Args:
        end_ids: Tokens that close an answer.
        share_prefix: Whether what all examples begin with is set apart, to be encoded once.
    """

    def __init__(self, end_ids: Sequence[int], *, share_prefix: bool) -> None:
        self.end_ids, self.share_prefix = tuple(end_ids), share_prefix

    def example(self, question: EncodedQuestion) -> tuple[tuple[int, ...], list[int]]:
        """Token ids of prompt, answer and end of turn; and the places of those that are trained on."""
        ids = question.prompt_ids + question.option_ids[question.gold] + self.end_ids
        answers = (*question.turns, (len(question.prompt_ids), len(ids) - len(self.end_ids)))
        return ids, [place for first, end in answers for place in range(first, end + len(self.end_ids))]

    def shared(self, questions: Sequence[EncodedQuestion]) -> int:
        """Tokens that are set apart of a batch's prompts: none that predicts what is trained on."""
        if not self.share_prefix:
            return 0
        first = [question.turns[0][0] - 1 for question in questions if question.turns]
        return min([shared_length([question.prompt_ids for question in questions]), *first])

    def __call__(self, fetched: tuple[list[EncodedQuestion], int]) -> AnswerBatch:
        questions, step_label_tokens = fetched
        if not questions:  # a filler: one token that counts as none and trains on nothing; its gradients are zeros
            none, one = torch.zeros(0, dtype=torch.long), torch.tensor([self.end_ids[:1]])
            return AnswerBatch(none, one, torch.zeros_like(one), none, none, step_label_tokens, questions=0, tokens=0)
        examples = [self.example(question) for question in questions]
        shared = self.shared(questions)
        prefix_ids = torch.tensor(questions[0].prompt_ids[:shared], dtype=torch.long)
        input_ids, attention_mask = pad_right([ids[shared:-1] for ids, _ in examples])
        width = input_ids.shape[1]
        places: list[int] = []
        targets: list[int] = []
        for row, (ids, trained) in enumerate(examples):
            start = row * width - shared
            places += [start + place - 1 for place in trained]
            targets += [ids[place] for place in trained]
        return AnswerBatch(
            *(prefix_ids, input_ids, attention_mask, torch.tensor(places), torch.tensor(targets), step_label_tokens),
            questions=len(questions),
            tokens=sum(len(ids) - 1 for ids, _ in examples),
        )
