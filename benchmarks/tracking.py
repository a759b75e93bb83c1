"""What tracking costs: a fit with both loggers and checkpoints against the bare ask/tell loop.

    python benchmarks/tracking.py fit            # SQLite store
    python benchmarks/tracking.py fit --delay 0.2  # an HTTP server whose every answer takes 200 ms
    python benchmarks/tracking.py long           # 10 000 logged steps: memory and size of the store
    python benchmarks/tracking.py storm          # 100 x kill -9 at any instant, then resume
    python benchmarks/tracking.py outage         # server dead or dying, disks full
    python benchmarks/tracking.py crowd          # 8 runs at once into one fresh SQLite store

Each product costs a fixed amount of real arithmetic, calibrated to ``--product`` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tracked_problem import SETTINGS, problem, verdict

os.environ.setdefault("OMP_NUM_THREADS", "1")


def build(product_seconds: float):
    """Return a module class whose product takes ``product_seconds``, and that extra work alone."""
    import torch

    import eigenexp as ee

    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)

    def work(count: int) -> None:
        for _ in range(count):
            matrix @ matrix

    def once() -> float:
        start = time.thread_time()
        work(50)
        return (time.thread_time() - start) / 50

    # The quickest of many: a busy machine only ever adds.
    count = max(1, round(product_seconds / min(once() for _ in range(40))))

    class Heavy(ee.EigendistortionModule):
        def _multiply(self, block):
            work(count)
            return super()._multiply(block)

    return Heavy, lambda: work(count)


class Bare:
    """The loop anybody would write, a few steps at a time."""

    def __init__(self, work: Callable[[], None]) -> None:
        import eigenexp as ee

        model, image = problem()
        self.operator = ee.FisherOperator(model, image)
        self.solver = ee.eigensolvers.make_solver(self.operator, **SETTINGS)
        self.work = work

    def run(self, steps: int) -> tuple[float, float]:
        """Return wall and processor seconds of ``steps`` steps."""
        wall, processor = time.perf_counter(), time.thread_time()
        for _ in range(steps):
            block = self.solver.ask()
            self.work()
            self.solver.tell(*self.operator.apply(block))
        return time.perf_counter() - wall, time.thread_time() - processor


def fit(
    module_class: type, steps: int, folder: Path, uri: str | None, loop: Bare, chunk: int
) -> tuple[list[tuple[float, ...]], float]:
    """Fit with everything on, and run the bare loop between chunks of steps, in the same minute.

    Return wall and processor seconds of each chunk, tracked and bare, and the seconds from the end
    until everything was stored.
    """
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    import eigenexp as ee

    model, image = problem()
    module = module_class(model, image, **SETTINGS)
    logger = ee.MLflowLogger("bench", root=folder / "mlruns", tracking_uri=uri, drain_timeout=120)
    chunks: list[tuple[float, ...]] = []

    class Turns(L.Callback):
        """First in line: what step n costs has all been paid when step n + 1 begins."""

        began = (0.0, 0.0)

        def turn(self) -> None:
            wall = time.perf_counter() - self.began[0]
            processor = time.thread_time() - self.began[1]
            chunks.append((wall, processor, *loop.run(chunk)))
            self.start()

        def start(self) -> None:
            self.began = (time.perf_counter(), time.thread_time())

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 0:
                self.start()
            elif trainer.global_step % chunk == 0:
                self.turn()

    trainer = L.Trainer(
        precision="64-true",
        max_steps=steps + 1,
        logger=[logger, TensorBoardLogger(folder, "tb")],
        callbacks=[
            Turns(),
            ee.ConvergenceStopping(),
            ee.ConvergenceLogging(),
            ee.DistortionPictures(),
            ee.SolverCheckpoint(folder / "checkpoints", every_n_steps=50),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.fit(module)
    end = time.perf_counter()
    stored = logger.close()
    drained = time.perf_counter()
    if not stored or trainer.global_step != steps + 1:
        raise SystemExit(
            f"expected {steps} steps, all stored; got {trainer.global_step}, stored: {stored}"
        )
    return chunks, drained - end


@contextlib.contextmanager
def slow_server(folder: Path, delay: float) -> Iterator[str | None]:
    """Yield the address of a real tracking server behind a door that delays each answer."""
    if not delay:
        yield None
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tracking.conftest import Server, Switch

    (folder / "server").mkdir()
    server = Server(folder / "server")
    server.start()
    door = Switch(server.port)
    door.delay = delay
    try:
        yield door.uri
    finally:
        door.close()
        server.stop()


def measure_fit(options: argparse.Namespace) -> bool:
    """Compare each chunk of tracked steps with the bare steps run right after it."""
    import statistics

    module_class, work = build(options.product)
    pairs: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as scratch, slow_server(Path(scratch), options.delay) as uri:
        for i in range(options.repeats):
            loop = Bare(work)
            chunks, tail = fit(
                module_class, options.steps, Path(scratch) / str(i), uri, loop, options.chunk
            )
            pairs += chunks
            tracked, cpu, plain, plain_cpu = (
                sum(each) / len(chunks) / options.chunk * 1e3 for each in zip(*chunks, strict=True)
            )
            print(
                f"a step: bare {plain:.2f} ms, tracked {tracked:.2f} ms, ratio "
                f"{tracked / plain:.3f}; solving thread's processor time {plain_cpu:.2f} and "
                f"{cpu:.2f} ms; all stored {tail:.1f} s after the end",
                flush=True,
            )
    ratio = statistics.median(tracked / plain for tracked, _, plain, _ in pairs)
    extra = statistics.median(tracked - plain for tracked, _, plain, _ in pairs) / options.chunk
    processor = statistics.median(cpu / plain for _, cpu, _, plain in pairs)
    extra_cpu = statistics.median(cpu - plain for _, cpu, _, plain in pairs) / options.chunk
    server = f"a server answering in {options.delay} s" if options.delay else "an SQLite store"
    return verdict(
        f"fit with both loggers and {server}, <= 1.05 of the bare loop",
        ratio <= 1.05,
        f"median of {len(pairs)} pairs of {options.chunk} steps {ratio:.3f} "
        f"(+{extra * 1e3:.2f} ms a step); processor time {processor:.3f} (+{extra_cpu * 1e3:.2f})",
    )


def measure_long(options: argparse.Namespace) -> bool:
    """Log as ConvergenceLogging does over many steps; report memory and the store's size."""
    import psutil

    from eigenexp.tracking.mlflow_logger import MLflowLogger

    process = psutil.Process()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "mlruns"
        logger = MLflowLogger("bench", root=root, drain_timeout=300)
        logger.version  # noqa: B018
        empty = (root / "mlflow.db").stat().st_size
        metrics = {f"residual/{i}": 0.1 for i in range(4)} | {
            f"eigenvalue/{i}": 1.0 for i in range(4)
        }
        metrics |= dict.fromkeys(("products", "worst_residual", "over_tol", "change"), 1.0)
        metrics |= dict.fromkeys(("trainer_step", "step_seconds", "elapsed_seconds"), 1.0)
        memory, sender = [], []
        child = psutil.Process(logger.sender.pid)
        for step in range(options.steps):
            if step <= 20 or step % options.every == 0:
                logger.log_metrics({k: v * step for k, v in metrics.items()}, step)
            if step % (options.steps // 20) == 0:
                time.sleep(0.2)
                memory.append(process.memory_info().rss / 2**20)
                sender.append(child.memory_info().rss / 2**20)
        logger.finalize("success")
        logger.close()
        size = (root / "mlflow.db").stat().st_size
    # What both processes take to begin with is not what grows: the first tenth is left out.
    spread = max(max(each[2:]) - min(each[2:]) for each in (memory, sender))
    return verdict(
        f"{options.steps} steps of tracking, memory flat within 20 MB, store under 20 MB",
        spread <= 20 and size < 20e6,
        f"a point of {len(metrics)} metrics every {options.every}: process {memory[2]:.0f} to "
        f"{max(memory):.0f} MB, sender {sender[2]:.0f} to {max(sender):.0f} MB, store "
        f"{size / 1e6:.1f} MB ({empty / 1e6:.1f} when empty)",
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fit", "long", "storm", "outage", "crowd"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--product", type=float, default=0.02, help="seconds of work a product")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a server's answer takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=50, help="steps in turn (fit)")
    parser.add_argument("--every", type=int, default=5, help="steps between points (long)")
    parser.add_argument("--times", type=int, default=100, help="kills (storm)")
    parser.add_argument("--lives", type=int, default=10, help="kills a run at the most (storm)")
    parser.add_argument("--limit", type=float, default=3.0, help="longest undisturbed life, s")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds a product (storm)")
    parser.add_argument("--other", default="/dev/shm", help="folder on another filesystem (storm)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=8, help="runs at once (crowd)")
    options = parser.parse_args()
    if options.steps is None:
        options.steps = {"fit": 500, "long": 10_000, "storm": 400}.get(options.what)
    warnings.filterwarnings("ignore", message=".*num_workers.*")
    if options.what == "storm":
        from storm import measure_storm as measure
    elif options.what == "outage":
        from outage import measure_outage as measure
    elif options.what == "crowd":
        from outage import measure_crowd as measure
    else:
        measure = {"fit": measure_fit, "long": measure_long}[options.what]
    sys.exit(0 if measure(options) else 1)


if __name__ == "__main__":
    main()
