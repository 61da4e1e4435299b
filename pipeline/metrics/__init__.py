"""From embeddings to a benchmark's figures: `evaluate` gives the rates, `hardest` the probes most wrongly
taken.
"""

from pipeline.metrics.evaluation import evaluate, hardest
from pipeline.metrics.verdict import Verdict, score, verdict

__all__ = ["Verdict", "evaluate", "hardest", "score", "verdict"]
