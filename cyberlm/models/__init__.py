"""Where a model is loaded, quantised and adapted."""

from cyberlm.models.adapters import add_adapter, base_alone, count_parameters, save_tuned, trainable_names
from cyberlm.models.bases import load_base, load_tokenizer, pick_device, read_shape
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.saving import saving, try_saving
from cyberlm.models.sharding import shard, trained_tensors
from cyberlm.models.skeletons import Skeleton, build_skeleton, published_shape

__all__ = [
    "LoadedModel",
    "Skeleton",
    "add_adapter",
    "base_alone",
    "build_skeleton",
    "count_parameters",
    "load_base",
    "load_tokenizer",
    "pick_device",
    "published_shape",
    "read_shape",
    "save_tuned",
    "saving",
    "shard",
    "trainable_names",
    "trained_tensors",
    "try_saving",
]
