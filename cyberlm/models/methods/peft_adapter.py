"""Other adapters of PEFT (method=miss, oft, shira, randlora, ia3, ln_tuning, prompt_tuning), each a YAML file.

`settings.peft_type` names the kind; the other settings are the fields of PEFT's configuration class for it.
"""

from dataclasses import fields
from typing import Any

from peft import TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from cyberlm.config.schema import MethodConfig
from cyberlm.models.loaded import one_line
from cyberlm.models.methods.adapters import Adapter
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean

TYPES = ("IA3", "LN_TUNING", "MISS", "OFT", "PROMPT_TUNING", "RANDLORA", "SHIRA")
"""Kinds that keep the base and train on 4 bits; tests/models/test_methods.py holds each to it."""


class PeftAdapter(Adapter):
    def __init__(self, config: MethodConfig) -> None:
        """Checks the settings."""
        settings = {str(name): value for name, value in config.settings.items()}
        kind = settings.pop("peft_type", None)
        self.can_merge = kind != "PROMPT_TUNING"
        problems = []
        if kind not in TYPES:
            problems.append(Problem(f"method.settings.peft_type={kind}", ", ".join(TYPES)))
        else:
            self.kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
            known = [field.name for field in fields(self.kind) if field.init]
            problems += [
                Problem(f"there is no setting method.settings.{name}. {did_you_mean(name, known)}".rstrip())
                for name in settings
                if name not in known
            ]
        if not problems:
            try:
                self.config = self.kind(task_type=TaskType.CAUSAL_LM, **settings)
            except (TypeError, ValueError) as error:
                problems.append(Problem(one_line(error)))
        if problems:
            raise ConfigError(f"method={config.name} cannot be used:", problems)
