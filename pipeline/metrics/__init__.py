"""From embeddings to a benchmark's figures: `evaluate` gives the rates, `hardest` the probes most wrongly
taken, `assess` both and more in one pass.
"""

from pipeline.metrics.evaluation import Assessment, assess, evaluate, hardest
from pipeline.metrics.verdict import Verdict, score, verdict

__all__ = ["Assessment", "Verdict", "assess", "evaluate", "hardest", "score", "verdict"]
