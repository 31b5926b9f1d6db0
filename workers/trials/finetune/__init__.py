"""The built-in objective `finetune`: one loop, one state, and a task for each thing to be learned.

Invariant: the loop knows no task; a task knows no checkpoint, no pruner and no optimizer.
"""

from workers.trials.finetune.objective import finetune

__all__ = ["finetune"]
