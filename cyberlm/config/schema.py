"""The names, types, units and defaults of every setting; the YAML files under conf/ hold the values of each choice.

The string below a field is its help (`--help`, docs/configuration.md). OmegaConf takes Enum and Any, not Literal.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from cyberlm.config.bounds import (
    AUTO,
    above_zero,
    at_least,
    between,
    file,
    folder,
    folder_name,
    one_of,
    question_file,
    run_folder,
    share,
)
from cyberlm.config.shapes import ShapeConfig, TinyModelConfig
from cyberlm.config.study import StudyConfig

ACCELERATORS = ("auto", "cpu", "cuda")
COLUMNS = ("id", "question", "options", "answer", "topic", "answer_is")


QuantName = StrEnum("QuantName", "none nf4")
ModelSource = StrEnum("ModelSource", "embedded hub local tiny")
Dtype = StrEnum("Dtype", "auto float32 bfloat16")
Attention = StrEnum("Attention", "sdpa eager flash_attention_2")
OnBadRow = StrEnum("OnBadRow", "error skip")
AnswerIs = StrEnum("AnswerIs", "letter text index0 index1")
OnLongPrompt = StrEnum("OnLongPrompt", "error skip")
Protocol = StrEnum("Protocol", "letter text")
PromptStyle = StrEnum("PromptStyle", "auto chat plain")
OptimizerName = StrEnum("OptimizerName", "adamw adamw_8bit paged_adamw_8bit")
ScheduleName = StrEnum("ScheduleName", "cosine linear constant")
OptionScore = StrEnum("OptionScore", "sum per_token per_char")
Monitor = StrEnum("Monitor", "option_nll accuracy")
LoraInit = StrEnum("LoraInit", "default gaussian pissa olora")
Strategy = StrEnum("Strategy", "auto ddp fsdp2")
Report = StrEnum("Report", "short full")


@dataclass
class ModelConfig:
    name: str = folder_name(MISSING)
    """Short name, used in folder and run names."""
    source: ModelSource = MISSING
    """Source of the weights: embedded (a GGUF file in a Python package), hub, local (model.path), tiny (random)."""
    hub_id: str | None = None
    """Hugging Face repository, `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit of the repository; null for its default branch."""
    package: str | None = None
    """Python package that ships the GGUF file (source=embedded)."""
    path: str | None = None
    """A folder, a .gguf file, or a hub id (model=local)."""
    licence: str = "unknown"
    """Licence of the weights, written into the model card."""
    licence_url: str | None = None
    """Page where the licence is read, and accepted for gated models."""
    gated: bool = False
    """The hub asks for an accepted licence and a login."""
    tied_embeddings: bool | None = None
    """Input embeddings and output head share weights; null: read from the model."""
    dtype: Dtype = Dtype.auto
    """Type of the base weights. auto: float32 on CPU and for full fine-tuning, bfloat16 on a GPU otherwise."""
    attention: Attention = Attention.sdpa
    """Attention implementation; flash_attention_2 needs the flash-attn package and a GPU."""
    use_liger_kernel: bool = False
    """On a GPU, compute norms, rotary embeddings and feed-forward layers with Liger's kernels (pip install
    'cyberlm[liger]'): faster, with less memory, equal up to rounding. A CPU leaves them out, and says so."""
    trust_remote_code: bool = False
    """Run Python code shipped with a hub repository. Off unless you have read that code."""
    tiny: TinyModelConfig | None = None
    """Shape of the random model (source=tiny)."""
    shape: ShapeConfig | None = None
    """Published sizes of a model that may be out of reach (plan=true)."""


@dataclass
class LoraConfig:
    rank: int = at_least(1, 16)
    """Rank r of the update B·A."""
    alpha: float = above_zero(32.0)
    """Scale: the update is multiplied by alpha/rank (alpha/sqrt(rank) with use_rslora)."""
    dropout: float = share(0.0)
    """Dropout before A, in [0, 1)."""
    target_modules: Any = "all-linear"
    """`all-linear` (every linear layer but the output head) or a list of module names such as [q_proj,v_proj]."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    use_rslora: bool = False
    """Rank-stabilised scale alpha/sqrt(rank) (arXiv 2312.03732)."""
    init: LoraInit = LoraInit.default
    """Initial A and B. default (Kaiming-uniform A) and gaussian: B is zero, and the base stays as it is. pissa (arXiv
    2404.02948) and olora (arXiv 2406.01775): of the base's singular vectors, or its QR decomposition, which is taken
    out of the base's weights; not on 4 bits."""


@dataclass
class MethodConfig:
    _target_: str = MISSING
    """Dotted name of the class that attaches, saves and loads what is trained (cyberlm/models/methods/)."""
    name: str = folder_name(MISSING)
    """Short name, used in folder and run names."""
    learning_rate: float = 2e-4
    """Peak learning rate this method is usually given; optim.learning_rate takes it unless set."""
    lora: LoraConfig | None = None
    """Adapter settings (lora and qlora)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a method other than full fine-tuning and LoRA: of PEFT's configuration, or of your own."""


@dataclass
class QuantConfig:
    name: QuantName = MISSING
    """Base weights as they are (none) or in 4-bit NormalFloat (nf4, bitsandbytes)."""
    double_quant: bool = True
    """Quantise the quantisation constants too (saves about 0.4 bit a weight)."""
    compute_dtype: Dtype = Dtype.auto
    """Type that 4-bit weights are expanded to. auto: float32 on CPU, bfloat16 on a GPU."""


@dataclass
class DataConfig:
    name: str = MISSING
    """Short name of the source: sample (embedded), cybermetric and others (downloaded), file (your own), or one of
    yours."""
    size: int | None = None
    """File of a source that has several (data.files); of CyberMetric: 80, 500, 2000 or 10000 questions."""
    dir: str | None = folder("a folder that holds CyberMetric-<size>-v1.json")
    """Folder that already holds the source's files; nothing is downloaded then."""
    path: str | None = question_file()
    """Your own questions (data=file): .json, .jsonl, .csv, .tsv or .parquet, each also with .gz; a folder that the
    datasets library reads; or the hub id of a dataset, owner/name."""
    address: str | None = None
    """Pinned file: https://..., file://..., a path, or package://PACKAGE/FILE; {commit} and such are filled in."""
    commit: str | None = None
    """Commit of the repository that the file is downloaded from. Of a hub id also a branch or a tag; null: the newest
    commit, which is filled in."""
    sha256: str | None = None
    """SHA-256 of the file's bytes; another file is refused."""
    files: dict[int, dict[str, str]] = field(default_factory=dict)
    """Files of a source that has several, by data.size, each with its sha256 and what data.address names."""
    answer_address: str | None = None
    """Pinned file of the answers, where a source keeps them in another file: its line k answers line k of data.address.
    Both may be zip archives of one file. A row has the fields question and answer then."""
    answer_sha256: str | None = None
    """SHA-256 of that file's bytes."""
    reader: str | None = None
    """Format: json, jsonl, csv, tsv, raw_tsv (without quoting) or parquet; null: by the ending of the file's name."""
    subset: str | None = None
    """Configuration of a dataset (data.path is a hub id or a folder), where it holds several."""
    split: str | None = None
    """Split of a dataset, where it holds several."""
    columns: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COLUMNS))
    """The file's column of each field: id, question, options, answer, topic, or another that the task reads. A name; a
    number from 1 where a table has no header; for options also a list of columns. Other columns are not read. All
    null: every column is a field of its own name. answer_is: letter (default), text (of the option), index0 or index1
    (its number, counted from 0 or from 1)."""
    licence: str = "unknown"
    """Licence of the questions."""
    preview: bool = False
    """Show the first questions as they would be asked, and end: data.preview=true."""
    test_size: int | None = None
    """Another of data.files held out as the test set; what it shares with training is left out of training."""
    test_path: str | None = file("a .json, .jsonl, .csv, .tsv or .parquet file, or a folder of the datasets library")
    """Your own held-out test file (data=file), in the shape of data.path."""
    test_split: str | None = None
    """Split of the dataset that is held out as the test set; of data.test_path, where that is given."""
    mix: list[str] = field(default_factory=list)
    """Several sources in place of one, all of one task: options of data, such as [cybermetric,cti_mcq]."""
    weights: list[float] = field(default_factory=list)
    """Shares in which training questions are drawn from the sources of data.mix, such as [2,1]: as many as there are in
    these shares, each once. Empty: all of them."""
    sources: dict[str, Any] = field(default_factory=dict)
    """Settings of each source of data.mix, taken from its YAML: +data.sources.cybermetric.size=500 changes one."""
    on_bad_row: OnBadRow = OnBadRow.error
    """error: list every bad row and stop; skip: leave bad rows out and count them."""
    validation_fraction: float = share(0.1)
    """Share of questions for validation."""
    test_fraction: float = share(0.2)
    """Share of questions for the test; ignored where a test file is named."""
    near_duplicate_jaccard: float = above_zero(0.8, most=1)
    """Questions whose word sets have at least this Jaccard index are one cluster, and stay on one side of the split."""
    seed: int = at_least(0, 0)
    """Seed of the split."""
    max_train: int | None = at_least(1, None)
    """Train on at most this many questions (a seeded choice)."""
    max_validation: int | None = at_least(1, None)
    """Validate on at most this many questions (a seeded choice)."""
    max_test: int | None = at_least(1, None)
    """Test on at most this many questions (a seeded choice, the same in train.py and evaluate.py)."""
    micro_batch_size: int = at_least(1, 8)
    """Questions in one forward and backward pass."""
    batch_size: int | None = at_least(1, None)
    """Questions in an optimizer step, those of all processes: trainer.accumulate_grad_batches follows from it, for any
    number of processes. Null: micro_batch_size times accumulate_grad_batches times processes."""
    max_batch_tokens: int = at_least(1, 4096)
    """Most tokens (padding included) in one forward pass of an evaluation."""
    max_length: int = at_least(16, 1024)
    """Longest prompt with its answer, in tokens; a longer question is never cut."""
    on_long_prompt: OnLongPrompt = OnLongPrompt.error
    """error: list every question over max_length and stop; skip: leave those of training out, and list them."""
    num_workers: int = at_least(0, 0)
    """Loader processes; the work is so light that 0 is fastest on most machines."""


@dataclass
class PromptConfig:
    name: str = folder_name(MISSING)
    """Short name."""
    protocol: Protocol = MISSING
    """letter: the answer is the option's letter; text: the answer is the option's text."""
    system: str = ""
    r"""System message; empty for none. Typed as an override, `\n` is a newline, `\t` a tab and `\\` a backslash."""
    question: str = MISSING
    """Template with {question} and, where options are shown, {options}; escapes are read as in `system`."""
    option: str = "{letter}) {text}"
    """Template of one option line; escapes are read as in `system`."""
    show_options: bool = True
    """Show the options in the prompt."""
    style: PromptStyle = PromptStyle.auto
    """chat: the model's chat template; plain: text that ends with `plain_cue`; auto: chat where the model has one."""
    plain_cue: str = "Answer:"
    """Last words of a plain prompt; the answer follows after one space. Escapes are read as in `system`."""


@dataclass
class OptimConfig:
    name: OptimizerName = OptimizerName.adamw
    """adamw (torch, float32 states), adamw_8bit or paged_adamw_8bit (bitsandbytes, GPU only)."""
    learning_rate: float = above_zero(2e-4)
    """Peak learning rate."""
    weight_decay: float = at_least(0, 0.0)
    """Decoupled weight decay; never on norms and biases."""
    loraplus_lr_ratio: float = above_zero(1.0)
    """LoRA+ (arXiv 2402.12354): learning rate of LoRA's B over that of A; the paper proposes 16."""
    beta1: float = share(0.9)
    """Decay of the running mean of gradients."""
    beta2: float = share(0.999)
    """Decay of the running mean of squared gradients."""
    eps: float = above_zero(1e-8)
    """Added to the denominator of the update."""
    schedule: ScheduleName = ScheduleName.cosine
    """Learning rate after warm-up: cosine or linear down to 0, or constant."""
    warmup_fraction: float = share(0.05)
    """Share of optimizer steps over which the learning rate rises from 0."""
    max_grad_norm: float = at_least(0, 1.0)
    """Gradients are scaled down to this norm; 0 switches clipping off."""


@dataclass
class TrainerConfig:
    max_epochs: int = at_least(1, 1)
    """Passes over the training questions."""
    max_steps: int | None = at_least(1, None)
    """Stop after this many optimizer steps; null for no limit."""
    accumulate_grad_batches: int = at_least(1, 1)
    """Micro-batches of each process in one optimizer step; set by data.batch_size where that is given."""
    val_check_interval: int | None = at_least(1, None)
    """Validate every this many micro-batches of each process; null for once at the end of each epoch."""
    monitor: Monitor = Monitor.option_nll
    """Validation figure that chooses the weights and ranks a sweep's jobs: option_nll (mean negative log-probability of
    the right option among the options, by evaluation.option_score; lower is better), or accuracy. Equals go to the
    better of the other figure."""
    accelerator: str = one_of(*ACCELERATORS)
    """auto, cpu or cuda."""
    devices: int = at_least(1, 1)
    """Processes that train and score together: one a GPU, or so many on the CPU; under torchrun, srun or another
    launcher, as many as that has started. An optimizer step takes accumulate_grad_batches micro-batches of each."""
    strategy: Strategy = Strategy.auto
    """Division of work among several processes: ddp (each holds the whole model; auto), or fsdp2 (each holds its share
    of weights, gradients and optimizer states, from loading to saving)."""
    replicas: int = at_least(1, 1)
    """With fsdp2: groups of processes that hold a full model each, such as one for each node (HSDP)."""
    cpu_offload: bool = False
    """With fsdp2: weights, gradients and optimizer states stay in host memory, and a GPU is given a layer at a time."""
    precision: str = one_of("auto", "32-true", "bf16-mixed", "16-mixed")
    """auto: 32-true on CPU, bf16-mixed on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    deterministic: bool = False
    """On a GPU, compute the same bits whenever a run is repeated or resumed; somewhat slower. A CPU always does."""
    log_every_n_steps: int = at_least(1, 1)
    """Optimizer steps between two rows of training metrics."""
    checkpoint_every_n_steps: int = at_least(1, 100)
    """Optimizer steps between two checkpoints that trainer.resume can start from; each epoch ends with one, too."""
    checkpoint_every_minutes: float | None = above_zero(15.0)
    """Most minutes between two checkpoints, however many steps these are; null for no limit."""
    keep_checkpoints: int = at_least(1, 2)
    """Number of these that are kept, the newest ones; best.ckpt is kept, too."""
    resume: str | None = run_folder(word=AUTO)
    """Run folder to continue; its own configuration is used. auto: hydra.run.dir, which has to be named, is continued
    where it holds a run with the same settings, and begun where it does not."""


@dataclass
class EvaluationConfig:
    option_score: OptionScore = OptionScore.per_token
    """Score of an option from the log-probabilities of its tokens (text protocol)."""
    generate: bool = True
    """Also answer by greedy generation, which ROUGE needs."""
    max_new_tokens: int = at_least(1, 32)
    """Longest generated answer, in tokens."""
    base: bool = True
    """Score the base model too (train.py, and evaluate.py run=...)."""
    test: bool = True
    """Answer the test questions; false (train.py): they stay closed, as in a study's tuning."""
    rotations: bool = False
    """Also answer under every rotation of the options, where they are shown: K - 1 more passes."""
    without_question: bool = False
    """Also answer without the question's text: one more pass."""
    validation: bool = False
    """Also answer the validation questions, to fit a temperature on: a pass over these."""
    prior_share: float = share(0.05)
    """Share of the questions that the prior of the letters is estimated on, of those that were rotated."""
    parquet: bool = False
    """Write the per-question rows as predictions.parquet too."""
    suspects: str | None = file("a JSON file of doubtful items")
    """File of items whose published key is doubtful (docs/results.md)."""


@dataclass
class PlanConfig:
    enabled: bool = False
    """Print what the run would take in memory, and end: `plan=true`."""
    device_memory_gib: float | None = above_zero(None)
    """Size of the device, GiB; null: the GPU that is there, else the host's free memory, past which no run begins."""


@dataclass
class RootConfig:
    """Settings that train.py and evaluate.py share."""

    model: ModelConfig = MISSING
    quant: QuantConfig = MISSING
    data: DataConfig = MISSING
    prompt: PromptConfig = MISSING
    task: dict[str, Any] = field(default_factory=dict)
    """Class that renders the questions and parses the answers: a _target_, and its settings."""
    evaluation: EvaluationConfig = MISSING
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name, each with a _target_: a function of the predictions."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Experiment loggers by name, each with a _target_; training writes metrics.csv in any case."""
    trainer: TrainerConfig = MISSING
    seed: int = between(0, 2**32 - 1, 0)
    """Seed of initialisation, shuffling and dropout; the largest is that of NumPy's old generator."""
    report: Report = Report.short
    """Printed at the end: short (at most eight lines) or full (every table)."""
    group: str | None = folder_name(None)
    """Name shared by the jobs of one sweep; set by the sweep itself."""

    @property
    def dry_run(self) -> bool:
        """True where nothing is trained, scored or written."""
        return self.data.preview


@dataclass
class TrainConfig(RootConfig):
    method: MethodConfig = MISSING
    optim: OptimConfig = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by name, each with a _target_."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    study: StudyConfig | None = None

    @property
    def dry_run(self) -> bool:
        return self.data.preview or self.plan.enabled


@dataclass
class EvaluateConfig(RootConfig):
    run: str | None = run_folder()
    """Run folder whose base and tuned model are scored; null: score `model` as it is."""
    runs: list[str] = field(default_factory=list)
    """Models scored together and paired: folders of runs, of adapters and of whole models, and `model` options."""
