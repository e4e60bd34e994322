"""An export, from top to bottom: made in a temporary folder, checked on the run's questions, then renamed."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cyberlm.config.commands import ExportConfig, ExportForm, GgufType
from cyberlm.config.saved import config_of
from cyberlm.config.schema import TrainConfig
from cyberlm.data.batches import plan_batches
from cyberlm.data.datamodule import encode_questions
from cyberlm.data.sources import SAMPLE, load_sources
from cyberlm.data.splits import SPLIT_MANIFEST, read_manifest, select_questions
from cyberlm.evaluation.agreement import Agreement, compare_answers
from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.results import environment, read_predictions, read_results
from cyberlm.evaluation.scoring import eval_mode, next_logits
from cyberlm.export.gguf import check_tokens, load_gguf, write_gguf
from cyberlm.export.merge import load_exported, load_exported_adapter, save_merged
from cyberlm.export.model_card import write_card
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import pick_device
from cyberlm.models.methods.method import method_of, saved_folder
from cyberlm.models.saving import write_prompt
from cyberlm.runs.open_run import base_of, check_prompt, load_tuned, prompt_of
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import DataError, Problem, RunError
from cyberlm.runtime.files import new_folder, write_json
from cyberlm.runtime.progress import say
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example

EXPORT_FILE = "export.json"
GGUF_FILE = "model.gguf"


Answered = tuple[list[Prediction], torch.Tensor | None]
"""Answers by likelihood, and the logits (N, V) of the first token of each, where they are known."""


@dataclass
class ExportCheck:
    """The questions that a model answers before and after, with their tokens and the run's configuration."""

    config: TrainConfig
    prompt: Prompt
    questions: Sequence[Example]
    encoded: Sequence[EncodedQuestion]

    def answers(self, loaded: LoadedModel, label: str) -> tuple[list[Prediction], torch.Tensor]:
        """One model's `Answered`."""
        tokens = self.config.data.max_batch_tokens
        likelihood = replace(self.config.evaluation, generate=False)
        predictions = predict(loaded, self.prompt, self.questions, self.encoded, likelihood, tokens, label)
        rows: dict[int, torch.Tensor] = {}
        with eval_mode(loaded.model):
            for batch in plan_batches([len(item.prompt_ids) for item in self.encoded], tokens):
                logits = next_logits(loaded, [self.encoded[row].prompt_ids for row in batch]).cpu()
                rows.update(zip(batch, logits, strict=True))
        return predictions, torch.stack([rows[row] for row in range(len(rows))])


def export(config: ExportConfig) -> Path:
    """Makes a folder that others load without cyberlm.

    Raises:
        RunError: If the run is not finished, the folder is there already, or too many answers change.
    """
    run = Path(config.run)
    trained = config_of(run)
    results = read_results(run)
    _check_form(config, trained, run)
    out = Path(config.out) if config.out is not None else run / "export" / config.to.value
    if out.exists():
        problem = Problem(f"out={out}", "a folder that does not exist yet", "out=...")
        raise RunError(f"{out} is there already.", [problem])
    with new_folder(out) as folder:
        exam = make_export_check(config, trained, run)
        if config.to is ExportForm.adapter:
            agreements = [_copy_adapter(config, exam, run, folder)]
        elif config.to is ExportForm.merged:
            agreements = [_merge(config, exam, run, folder)[0]]
        else:
            agreements = _write_gguf(config, exam, run, folder)
        found = [asdict(agreement) for agreement in agreements]
        write_json(folder / EXPORT_FILE, {"run": run.name, "to": config.to.value, "agreement": found, **environment()})
        base = results.provenance["base_model"]
        write_card(folder, trained, base, results, more=_card_lines(config.to, agreements))
    say(f"Files: {out}")
    return out


def _check_form(config: ExportConfig, trained: TrainConfig, run: Path) -> None:
    """Refuses a form that the method of a run does not have."""
    is_adapter = (saved_folder(trained.method, run) / "adapter_config.json").is_file()
    if config.to is ExportForm.adapter and not is_adapter:
        raise RunError(f"{run} was tuned without an adapter.", [Problem("to=adapter", "merged, gguf", "to=merged")])
    if config.to is not ExportForm.adapter and not method_of(trained.method).can_merge:
        allowed = "adapter" if is_adapter else f"the folder {saved_folder(trained.method, run)}"
        problem = Problem(f"to={config.to.value}", allowed)
        raise RunError(f"What method={trained.method.name} trains cannot be merged.", [problem])


def make_export_check(config: ExportConfig, trained: TrainConfig, run: Path) -> ExportCheck:
    """The first of a run's test questions, `config.questions` at most; sample questions where its own are gone."""
    prompt = prompt_of(trained, run)
    hashes = [row["hash"] for row in read_manifest(run / SPLIT_MANIFEST)["parts"]["test"]]
    try:
        questions = select_questions(load_sources(trained.data, prompt.task), hashes[: config.questions])
    except DataError as error:
        say(f"{error.title}\nThe export is checked on the embedded sample questions instead of the run's own.")
        (sample,) = load_sources(SAMPLE, prompt.task)
        questions = sample.questions[: config.questions]
    encoded = encode_questions(questions, prompt, trained.data.max_length, cache_folder() / "tokenised")
    return ExportCheck(trained, prompt, questions, encoded)


# -------------------------------------------------------------------------------------------------- the three forms


def _write_gguf(config: ExportConfig, exam: ExportCheck, run: Path, folder: Path) -> list[Agreement]:
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder.parent) as name:
        source = Path(name)
        merged, before, dtype = _merge(config, exam, run, source)
        licence = exam.config.model.licence
        wrote = write_gguf(source, folder / GGUF_FILE, config.gguf_type, run.resolve().name, licence)
        say(f"{GGUF_FILE}: {config.gguf_type.value}, written by {wrote}")
        check_tokens(folder / GGUF_FILE, exam.prompt.tokenizer)
        loaded = load_gguf(folder / GGUF_FILE, pick_device(config.accelerator), dtype, source)
        shutil.copy(source / "prompt.json", folder)
    after = exam.answers(loaded, "the GGUF file")
    return [merged, _agreement(config, ("merged", f"gguf {config.gguf_type.value}"), before, after)]


def _copy_adapter(config: ExportConfig, exam: ExportCheck, run: Path, folder: Path) -> Agreement:
    """Copies the adapter; what plain PEFT makes of it is compared with what the run has on record, or answers."""
    shutil.copytree(saved_folder(exam.config.method, run), folder, dirs_exist_ok=True)
    device = pick_device(config.accelerator)
    predictions, _ = exam.answers(
        load_exported_adapter(base_of(exam.config, run, device).loaded, folder), "the adapter"
    )
    known = {row.hash: row for row in read_predictions(run / "predictions.jsonl")["tuned"]}
    before, record = "the run's record", [known[row.hash] for row in predictions if row.hash in known]
    if len(record) < len(predictions):
        before, (record, _) = "the run's model", exam.answers(load_tuned(exam.config, run, device), "the tuned model")
    return _agreement(config, (before, "adapter"), (record, None), (predictions, None))


def _merge(config: ExportConfig, exam: ExportCheck, run: Path, folder: Path) -> tuple[Agreement, Answered, torch.dtype]:
    """Saves the merged model into `folder`, and loads it from there to see that it answers as the adapter did.

    Returns:
        How far they agree, the merged model's answers, and the type of its weights.
    """
    device = pick_device(config.accelerator)
    method, tuned = method_of(exam.config.method), saved_folder(exam.config.method, run)
    if method.trains_all_weights:
        merged = method.merge(base_of(exam.config, run, device), tuned)
        before = exam.answers(merged, "the tuned model")
    else:
        before = exam.answers(load_tuned(exam.config, run, device), "the tuned model")  # one model at a time in memory
        merged = method.merge(base_of(exam.config, run, device), tuned)
    attention = merged.causal.config._attn_implementation
    fingerprint = {"fingerprint": exam.prompt.fingerprint()}
    save_merged(merged, exam.prompt.tokenizer, exam.prompt.stop_ids, fingerprint, folder)
    del merged
    loaded, tokenizer = load_exported(folder, device, attention)
    reloaded = Prompt(exam.config.prompt, tokenizer, exam.prompt.task)
    check_prompt(reloaded, folder)
    write_prompt(folder, reloaded.identity())
    after = exam.answers(loaded, "the merged model")
    return _agreement(config, (tuned.name, "merged"), before, after), after, loaded.causal.dtype


# ------------------------------------------------------------------------------------------------------- the checks


def _agreement(config: ExportConfig, names: tuple[str, str], before: Answered, after: Answered) -> Agreement:
    """Shows how far two models agree, and refuses too many flips."""
    logits = (before[1], after[1])
    largest = None if logits[0] is None or logits[1] is None else float((logits[0] - logits[1]).abs().max())
    agreement = compare_answers(names, before[0], after[0], largest)
    lines = [flip.sentence() for flip in agreement.flips]
    say("\n".join([agreement.sentence(), *(f"  {line}" for line in lines)]))
    allowed = int(config.max_flip_share * agreement.questions)
    if len(agreement.flips) <= allowed:
        return agreement
    share = len(agreement.flips) / agreement.questions
    advice = f"max_flip_share={share:.3f} accepts them: look at the margins above first."
    if agreement.after.startswith("gguf") and config.gguf_type is not GgufType.f32:
        advice = f"gguf_type=f32 keeps every digit. {advice}"
    raise RunError(
        f"Not exported: {len(agreement.flips)} of {agreement.questions} answers of {agreement.after} are not those of "
        f"{agreement.before}, and at most {allowed} may differ.",
        [Problem(line) for line in lines],
        advice,
    )


def _card_lines(form: ExportForm, agreements: Sequence[Agreement]) -> list[str]:
    how = {
        ExportForm.merged: "`AutoModelForCausalLM.from_pretrained(FOLDER)` of transformers loads it.",
        ExportForm.gguf: f"llama.cpp loads it: `llama-cli -m {GGUF_FILE}`.",
        ExportForm.adapter: "`PeftModel.from_pretrained(BASE, FOLDER)` of PEFT puts it on the base model.",
    }[form]
    return ["", "## Export", how, *(f"- {agreement.sentence()}" for agreement in agreements)]
