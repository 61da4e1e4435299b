"""Training as a SLURM job that saves, requeues itself and goes on: what `hstl submit` writes and hands over."""

from pipeline.slurm.resources import Resources
from pipeline.slurm.site import Site, load_site
from pipeline.slurm.submit import Submission, prepare, recipes_and_overrides, submit

__all__ = ["Resources", "Site", "Submission", "load_site", "prepare", "recipes_and_overrides", "submit"]
