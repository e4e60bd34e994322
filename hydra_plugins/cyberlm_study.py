"""Hydra's sweeper of a study (`hydra/sweeper=study`): Hydra loads sweepers from the package hydra_plugins alone."""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Hands a study's jobs to Hydra's launcher, one stage after the other."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config  # for `validate_batch_is_legal`
        self._composition, self._settings = hydra_context.config_loader, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from cyberlm.runs.study import run_study  # here: every Hydra application imports this module

        self._started = 0
        run_study(self._settings, arguments, self._launch, self._composed)

    def _composed(self, job: Sequence[str]) -> DictConfig:
        return self._composition.load_sweep_config(self._settings, list(job))

    def _launch(self, jobs: Sequence[Sequence[str]]) -> None:
        """Runs jobs, each given by its overrides, and waits for them."""
        self.validate_batch_is_legal(jobs)
        for job in self._launcher.launch(jobs, initial_job_idx=self._started):
            _ = job.return_value  # raises where the job could not be run
        self._started += len(jobs)
