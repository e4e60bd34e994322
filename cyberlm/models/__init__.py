"""Where a model is loaded, quantised and adapted."""

from cyberlm.models.adapters import add_adapter, base_alone, count_parameters, load_tuned, save_tuned, trainable_names
from cyberlm.models.bases import LoadedModel, load_base, load_tokenizer, pick_device
from cyberlm.models.sharding import shard, trained_tensors

__all__ = [
    "LoadedModel",
    "add_adapter",
    "base_alone",
    "count_parameters",
    "load_base",
    "load_tokenizer",
    "load_tuned",
    "pick_device",
    "save_tuned",
    "shard",
    "trainable_names",
    "trained_tensors",
]
