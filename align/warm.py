"""The warm parent: imports what stages import, and forks one process for every stage.

    python -m align.warm PID       started by the runner with that pid (processes.py)

Requests are lines on stdin, `{"work": DIRECTORY}`. Reports are lines on stdout: `pid` of the child,
`ready` when a first tensor operation has ended in it, `exit` with its code, or `stuck` with the
reason why nothing can be forked.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from align import processes, versions, worker


def serve() -> int:
    """Import the libraries, then fork a child for every request: a line of JSON on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.dup(1)
    os.dup2(2, 1)

    def report(**said: Any) -> None:
        os.write(reports, json.dumps(said).encode() + b"\n")

    preload()
    versions.libraries()
    gc.collect()
    gc.freeze()  # collections in a child then leave the shared pages alone
    server = os.getpid()
    for line in sys.stdin:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            report(stuck=f"the warm parent has {threads} threads")
            continue
        child = os.fork()
        if child == 0:
            processes.die_with(server)
            code = 1
            try:
                code = forked(Path(json.loads(line)["work"]), report)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                try:
                    atexit._run_exitfuncs()
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:  # whatever happens, a child must not go on as a second server
                    os._exit(code)
        report(pid=child)
        _, status = os.waitpid(child, 0)
        report(exit=os.waitstatus_to_exitcode(status))
    return 0


def forked(work: Path, report: Any) -> int:
    """The child: show that tensors work here, then make the stage."""
    log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    import torch

    torch.ones(1 << 16).mul_(2).sum()  # large enough for two threads: a bad fork hangs here
    report(ready=os.getpid())
    return worker.guarded(worker.make, work)


def preload() -> None:
    """Everything heavy that stages import, and nothing else: no tensors, no threads."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401


if __name__ == "__main__":
    processes.die_with(int(sys.argv[1]))
    sys.exit(serve())
