"""One model's answers to a set of questions, by likelihood and by generation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from cyberlm.config.schema import EvaluationConfig
from cyberlm.data.batches import collate_scoring, plan_batches
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.rotations import rotations, safe_to_permute
from cyberlm.evaluation.predictions import NO_CHOICE, OTHER_ANSWER, Prediction, Predictions
from cyberlm.evaluation.scores import choose
from cyberlm.evaluation.scoring import eval_mode, generate, option_log_probs
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.sharding import equal_calls
from cyberlm.runtime import distributed
from cyberlm.runtime.progress import Advance, track
from cyberlm.tasks.multiple_answer import MultipleAnswer
from cyberlm.tasks.multiple_choice import MultipleChoice
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example, short_hash


class Completion(NamedTuple):
    """Generated text, and why it ended: `stop`, or `length` where `max_new_tokens` cut it off."""

    text: str | None
    finish_reason: str | None


def run_inference(
    loaded: LoadedModel, prompt: Prompt, eval_set: EvalSet, encoded: Mapping[str, Sequence[EncodedQuestion]], label: str
) -> Predictions:
    """Predictions of one model, with the further passes that `evaluation` asks for; these are by likelihood alone.

    Args:
        encoded: The `test` questions of the set, and its `validation` questions where there are any.
    """
    wanted, tokens = eval_set.config.evaluation, eval_set.config.data.max_batch_tokens

    def by_likelihood(questions: Sequence[Example], items: Sequence[EncodedQuestion], what: str) -> list[Prediction]:
        config = replace(wanted, generate=False)
        return predict(loaded, prompt, questions, items, config, tokens, f"{label}, {what}")

    test = predict(loaded, prompt, eval_set.questions, encoded["test"], wanted, tokens, label)
    if isinstance(prompt.task, MultipleAnswer):
        test = _with_each_option(loaded, prompt, prompt.task, eval_set, test, label)
    rotated: list[list[Prediction]] = []
    # The order of options that are not shown, or that are classes, changes nothing.
    if wanted.rotations and eval_set.options_shown and isinstance(prompt.task, MultipleChoice):
        safe = [pair for pair in zip(eval_set.questions, test, strict=True) if safe_to_permute(pair[0].options)]
        turned = [rotation for question, _ in safe for rotation in rotations(question)[1:]]
        rows = iter(by_likelihood(turned, prompt.encode(turned), "rotated options"))
        rotated = [[row, *(next(rows) for _ in question.options[1:])] for question, row in safe]
    without_question: list[Prediction] = []
    if wanted.without_question:
        blind = [replace(question, question="") for question in eval_set.questions]
        found = by_likelihood(blind, prompt.encode(blind), "without the question")
        without_question = [replace(row, hash=plain.hash) for row, plain in zip(found, test, strict=True)]
    validation: list[Prediction] = []
    if wanted.validation and eval_set.validation:
        validation = by_likelihood(eval_set.validation, encoded["validation"], "validation questions")
    return Predictions(test, rotated, without_question, validation)


def _with_each_option(
    loaded: LoadedModel, prompt: Prompt, task: MultipleAnswer, eval_set: EvalSet, test: list[Prediction], label: str
) -> list[Prediction]:
    """Predictions with the log-odds of each option's yes; right by likelihood where these make the right set."""
    judge = Prompt(prompt.config, prompt.tokenizer, task.judge)
    asked = [task.each_option(question) for question in eval_set.questions]
    flat = [one for each in asked for one in each]
    config, tokens = replace(eval_set.config.evaluation, generate=False), eval_set.config.data.max_batch_tokens
    rows = iter(predict(loaded, judge, flat, judge.encode(flat), config, tokens, f"{label}, each option"))
    found = []
    for row, each in zip(test, asked, strict=True):
        pairs = [next(rows).option_logprobs for _ in each]
        judged = replace(row, option_log_odds=tuple(yes - no for yes, no in pairs))
        right = judged.yes_letters == row.reference
        found.append(replace(judged, choice=row.gold if right else OTHER_ANSWER))
    return found


def predict(
    loaded: LoadedModel,
    prompt: Prompt,
    questions: Sequence[Example],
    encoded: Sequence[EncodedQuestion],
    config: EvaluationConfig,
    max_batch_tokens: int,
    label: str,
) -> list[Prediction]:
    """Scores every option of every question and, if `config.generate`, answers greedily too.

    Where several processes work together, each answers its share of the questions, and all get all answers.
    """
    rows = distributed.rows_of_rank(len(questions))
    asked, encoded = [questions[row] for row in rows], [encoded[row] for row in rows]
    if distributed.world_size() > 1:
        label = f"{label} ({len(rows)} of {len(questions)} questions, one process's share)"
    with eval_mode(loaded.model):
        with track(f"Scoring {label}", len(asked), "questions") as advance, equal_calls(loaded):
            scored = loaded.within(_score, loaded, encoded, max_batch_tokens, advance)
        completions: Sequence[Completion] = [Completion(None, None)] * len(asked)
        if config.generate:
            with track(f"Generating with {label}", len(asked), "questions") as advance, equal_calls(loaded):
                completions = loaded.within(_complete, loaded, prompt, encoded, config, max_batch_tokens, advance)
    predictions = [
        Prediction(
            id=question.id,
            hash=question.hash,
            gold=question.gold,
            n_options=len(item.option_ids),
            option_logprobs=log_probs,
            option_tokens=answer_tokens(item),
            option_chars=item.option_chars,
            choice=NO_CHOICE,
            gold_nll=-log_probs[question.gold] / answer_tokens(item)[question.gold],
            generated=completion.text,
            parsed=None if completion.text is None else prompt.task.parse(completion.text, question),
            reference=prompt.task.target(question),
            prompt_hash=short_hash(prompt.render(question)),
            topic=question.topic,
            finish_reason=completion.finish_reason,
        )
        for question, item, log_probs, completion in zip(asked, encoded, scored, completions, strict=True)
    ]
    chosen, best = (found.tolist() for found in choose(predictions, config.option_score))
    made = zip(predictions, chosen, best, strict=True)
    predictions = [replace(row, choice=choice, tied=equals > 1) for row, choice, equals in made]
    return distributed.gather_rows(predictions, len(questions))


def answer_tokens(question: EncodedQuestion) -> tuple[int, ...]:
    """Tokens of each option, those of a conversation's earlier answers included."""
    return tuple(len(ids) + sum(end - first for first, end in question.turns) for ids in question.option_ids)


def scored_tokens(question: EncodedQuestion) -> int:
    """Tokens whose keys and values one question with all its options takes."""
    return len(question.prompt_ids) + sum(len(ids) for ids in question.option_ids)


def generated_tokens(question: EncodedQuestion, config: EvaluationConfig) -> int:
    """Tokens whose keys and values one question with its longest completion takes."""
    return len(question.prompt_ids) + config.max_new_tokens


def _score(
    loaded: LoadedModel, encoded: Sequence[EncodedQuestion], max_batch_tokens: int, advance: Advance
) -> list[tuple[float, ...]]:
    """Summed log-probability of each option of every question; of a conversation, that of all its answers."""
    turns = [list(item.each_turn()) for item in encoded]
    flat, ends = [turn for own in turns for turn in own], set(accumulate(map(len, turns)))
    lengths = list(map(scored_tokens, flat))
    scored: dict[int, tuple[float, ...]] = {}
    for rows in plan_batches(lengths, max_batch_tokens):
        items = [flat[row] for row in rows]
        batch = collate_scoring(items).to_device(loaded.device)
        log_probs = option_log_probs(loaded, batch)
        for row, item, values in zip(rows, items, log_probs.tolist(), strict=True):
            scored[row] = tuple(values[: len(item.option_ids)])
        advance(sum(row + 1 in ends for row in rows), sum(lengths[row] for row in rows))
    each = iter(scored[row] for row in range(len(flat)))
    return [tuple(map(sum, zip(*(next(each) for _ in own), strict=True))) for own in turns]


def _complete(
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Sequence[EncodedQuestion],
    config: EvaluationConfig,
    max_batch_tokens: int,
    advance: Advance,
) -> list[Completion]:
    """Greedy completions, special tokens left out."""
    lengths = [generated_tokens(item, config) for item in encoded]
    completions: dict[int, Completion] = {}
    for rows in plan_batches(lengths, max_batch_tokens):
        prompts = [encoded[row].prompt_ids for row in rows]
        new = generate(loaded, prompts, prompt.stop_ids, config.max_new_tokens)
        for row, ids in zip(rows, new, strict=True):
            text = str(prompt.tokenizer.decode(ids, skip_special_tokens=True))
            # A row that stopped is shorter: its stop token is left out.
            completions[row] = Completion(text, "length" if len(ids) == config.max_new_tokens else "stop")
        advance(len(rows), sum(len(ids) for ids in new))
    return [completions[row] for row in range(len(encoded))]
