"""From the command line to a checked configuration: composition, its errors as one screen, and a sweep's jobs."""

from cyberlm.launch.commands import CheckFirst, main, prepare_process
from cyberlm.launch.folders import conf_folder, group_files, register_resolvers
from cyberlm.launch.screens import show

__all__ = ["CheckFirst", "conf_folder", "group_files", "main", "prepare_process", "register_resolvers", "show"]
