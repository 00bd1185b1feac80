"""What the jobs of test_job.py run; a module of its own, so that a new process can import it."""

import os
import signal
import time

from launch_targets import job

from src.utils import preemption
from src.utils.distributed import agree, is_main


def until_signalled(name, config, resume_preempt=False):
    """A run that gets the signal named by logging.write_tag, and stops as training does; started again, it ends."""
    if resume_preempt:
        job(name, config, resume_preempt)
        return
    with preemption.listening():
        if is_main():
            os.kill(os.getpid(), getattr(signal, config.logging.write_tag))
        while not (signum := agree(preemption.requested())[0]):
            time.sleep(0.01)
        raise preemption.Preempted(signum, "saved at step 3")
