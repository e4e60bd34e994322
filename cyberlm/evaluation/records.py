"""Plain data that the other parts hand to one another. No torch here."""

from dataclasses import dataclass, field

from cyberlm.evaluation.predictions import LIKELIHOOD


@dataclass(frozen=True)
class Proportion:
    """A share of questions with its 95% Wilson interval."""

    value: float
    correct: int
    n: int
    ci_lo: float
    ci_hi: float


@dataclass(frozen=True)
class RougeScores:
    """Mean F-measure of the generated answers against the reference answers, each in [0, 1].

    `rouge2` is None where every reference has fewer than two tokens (it is undefined then, not 0); `note` says so.
    """

    rouge1: float
    rouge2: float | None
    rougeL: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class ModelScores:
    """What one model scored on one set of questions.

    Attributes:
        likelihood: Accuracy of the option chosen by likelihood.
        per_letter: Recall of each gold letter, by likelihood.
        gold_nll: Mean over questions of the right answer's negative log-likelihood a token (nats).
        generation: Accuracy of the parsed greedy completion (unparseable is wrong), or None where it was not measured.
        generation_note: Why `generation` is None.
        parse_fail_rate: Share of completions that came to their end and name no option.
        rouge: Of the completions, or None where nothing was generated.
        ties: Questions whose best score two or more options share.
        truncated_rate: Share of completions that `max_new_tokens` cut off before they named an option; None where
            nothing was parsed, and in older files, where `parse_fail_rate` counts them.
    """

    likelihood: Proportion
    per_letter: dict[str, Proportion]
    gold_nll: float
    generation: Proportion | None
    generation_note: str
    parse_fail_rate: float | None
    rouge: RougeScores | None
    ties: int = 0
    truncated_rate: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Base against tuned on the same questions, by the accuracy that `primary_metric` names.

    Attributes:
        difference: Tuned accuracy minus base accuracy.
        only_base_right, only_tuned_right: Discordant questions.
        p_value: Exact McNemar test, two-sided, near-duplicates changing sides as one.
        verdict: The same in words; says so where the difference is not significant at 5%.
        metric: `generation` or `likelihood`; older files compare by likelihood.
        ci_lo, ci_hi: 95% interval of the difference; None in older files.
        p_mid: Mid-p of the test, which decides; None in older files.
        moved: Of a difference by generation, what is format (completions that name no option) and what is knowledge
            (questions on which both models' completions name one); empty otherwise.
    """

    difference: float
    only_base_right: int
    only_tuned_right: int
    p_value: float
    verdict: str
    metric: str = LIKELIHOOD
    ci_lo: float | None = None
    ci_hi: float | None = None
    p_mid: float | None = None
    moved: str = ""

    def sentences(self) -> list[str]:
        """`Tuned against base: +2.7 points of accuracy by likelihood (95% -1.2 to +6.5), significantly better ...`."""
        interval = ""
        if self.ci_lo is not None and self.ci_hi is not None:
            interval = f" (95% {100 * self.ci_lo:+.1f} to {100 * self.ci_hi:+.1f})"
        points = f"{100 * self.difference:+.1f} points of accuracy by {self.metric}{interval}"
        return [f"Tuned against base: {points}, {self.verdict}.", *([f"{self.moved}."] if self.moved else [])]


@dataclass(frozen=True)
class Cost:
    """What a run cost. Tokens of training are counted over all steps; speeds leave validation out.

    Attributes:
        seconds: Wall time by phase, for example `{"load": 6.1, "train": 120.3}`.
        processed_tokens: Places computed: padding included, what a batch's prompts begin with once.
        nonpadding_tokens, label_tokens: Of the prompts and answers, in full; of the answers alone.
        nonpadding_tokens_per_second: Effective tokens over the wall time of training steps: what a batch's prompts
            begin with counts in each of them, though it is computed once.
        computed_tokens_per_second: `processed_tokens` over the same time; None in older files.
        adapter_bytes: On disk; for full fine-tuning, of the whole model.
        peak_host_bytes, peak_device_bytes: Largest resident memory; largest GPU memory (None on CPU).
        predicted_peak_bytes: What was planned before the run: of the GPU where there is one, else of the host.
    """

    trainable_parameters: int
    total_parameters: int
    seconds: dict[str, float]
    processed_tokens: int
    nonpadding_tokens: int
    label_tokens: int
    nonpadding_tokens_per_second: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    adapter_bytes: int
    predicted_peak_bytes: int | None = None
    computed_tokens_per_second: float | None = None


@dataclass(frozen=True)
class ScoredModel:
    """What one model of an evaluation was.

    Attributes:
        source: What was typed for it, or the name of its `model` option.
        kind: `base`, `adapter`, or `weights` (merged or fully tuned).
        base: Name of the weights that were loaded: hub id or path.
        quant: `none` or `nf4`.
        weights: Hash of these weights.
        adapter: SHA-256 of the adapter's files; None without one.
        prompt: Fingerprint of the prompt with this model's tokenizer.
        tuned_from: Name of its base among the scored models; None for a base, and where its base is not one of them.
    """

    source: str
    kind: str
    base: str
    quant: str
    weights: str
    adapter: str | None
    prompt: str
    tuned_from: str | None = None


@dataclass(frozen=True)
class Results:
    """results.json: everything a run found. Written by `cyberlm.evaluation.results`; documented in docs/results.md.

    Attributes:
        schema_version: Raised when a field changes its meaning or goes away.
        kind: `train` or `evaluate`.
        scores: By model: `base` and `tuned` (either may be missing), or the names of the models of an evaluation.
        objective: The validation figure that chose the weights (train only) and ranks a sweep's jobs. Never of the
            test set.
        steps: Optimizer steps taken.
        provenance: Hashes, seeds, versions and the command.
        models: By the names of `scores`, what was scored (evaluations only).
        monitor: What `objective` is: `option_nll` (lower is better) or `accuracy`. None in an evaluation, and in runs
            of a time when it was always accuracy.
        validation: Every validation figure of the weights that were chosen, by name (train only).
    """

    schema_version: int
    kind: str
    model: str
    method: str
    quant: str
    prompt: str
    data: str
    questions: dict[str, int]
    scores: dict[str, ModelScores]
    comparison: Comparison | None
    objective: float | None
    steps: int
    cost: Cost | None
    provenance: dict[str, str]
    models: dict[str, ScoredModel] = field(default_factory=dict)
    monitor: str | None = None
    validation: dict[str, float | None] = field(default_factory=dict)
