"""Ending a run of several processes."""

import torch.distributed as distributed


def end_together() -> None:
    """Wait for the other processes, then close the process group; does nothing in a single process.

    A process that leaves with the group open may abort in the destructors of its background threads
    ("terminate called without an active exception"), and Lightning's launcher answers the death of
    one process by killing the others, at that moment perhaps amid the report.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    distributed.barrier()
    distributed.destroy_process_group()
