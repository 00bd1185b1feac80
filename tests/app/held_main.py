"""`app.main_distributed` whose runs wait before step HOLD until they are asked to stop; started again, they go on.

So a test that stops a run finds it there, however fast or slow the machine is. Run it as a script: submitit then stores
`held` itself with the job, and a job needs no import of this file.
"""

HOLD = 5


def held(name, config, resume_preempt=False):
    """scaffold.main, held in every process."""
    import time

    from app import scaffold
    from app.vjepa import train
    from app.vjepa.checkpoints import checkpoint_path
    from src.launch import preemption

    train_step = train.train_step

    def step_when_asked(args, run, group, now):
        first = not checkpoint_path(args).exists()  # asked to stop, a run saves
        while run.step == HOLD and first and not preemption._received:
            time.sleep(0.01)
        return train_step(args, run, group, now)

    train.train_step = step_when_asked
    scaffold.main(name, config, resume_preempt)


if __name__ == "__main__":
    from app import main_distributed, scaffold
    from src.utils.errors import run_cli

    scaffold.main = held
    run_cli(main_distributed.main)
