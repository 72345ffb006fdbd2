"""How a tower runs: device, precision, and the fastest plan that gives the same features.

A plan says how a module is laid out and called:

    plain          as it comes, under autocast where the precision is not fp32
    channels_last  convolution weights and images in NHWC
    packed         CPU: weights in oneDNN's blocked layout, batch norms folded, GELU fused (and channels_last)
    compiled       torch.compile, weights frozen into the graph on a CPU (and channels_last)

Which is taken, `encoding.plans` says. So two runs may differ in the last digits: a trial on a busy machine may have
another winner, and what a batch holds, how many threads there are, and the processor move them too. A deterministic
run has no trial, runs `plain`, and names all of these (`Runtime.fixed`); on the same machine, with the same options,
it gives the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from clipbench.errors import ClipbenchError, NotApplicable, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    Rows = Callable[[torch.Tensor], torch.Tensor]

Precision = Literal["fp32", "bf16", "fp16"]
Plan = Literal["plain", "channels_last", "packed", "compiled"]

MAX_BATCH = 512  # rows of one shard of the feature store


@dataclass(frozen=True)
class Runtime:
    """Where and how precisely towers run; `deterministic`: so that two runs on one machine give the same bits."""

    device: str
    precision: Precision
    batch_size: int | None = None
    workers: int | None = None
    deterministic: bool = False

    @classmethod
    def choose(
        cls,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        deterministic: bool = False,
    ) -> Runtime:
        """Resolve `auto`: the first GPU if there is one; bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.

        Raises:
            ClipbenchError: a device or precision that this machine does not have.
        """
        if device != "cpu" and device != "auto" and not device.startswith("cuda"):
            raise ClipbenchError(f'unknown device "{device}"; allowed: auto, cpu, cuda, cuda:N')
        if device != "cpu":
            device = _gpu(device)
        if precision == "auto":
            precision = "fp32" if device == "cpu" else _lower()
        if precision not in ("fp32", "bf16", "fp16"):
            raise ClipbenchError(f'unknown precision "{precision}"; allowed: auto, fp32, bf16, fp16')
        if batch_size is not None and not 1 <= batch_size <= MAX_BATCH:
            raise ClipbenchError(f"--batch-size must be 1 to {MAX_BATCH} (found {batch_size})")
        if workers is not None and workers < 0:
            raise ClipbenchError(f"--workers must be 0 or more (found {workers})")
        return cls(device, precision, batch_size, workers, deterministic)  # type: ignore[arg-type]

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def device_name(self) -> str:
        """What the record says: the GPU's or the processor's name."""
        if self.on_cpu:
            return processor()[0]
        import torch

        return torch.cuda.get_device_name(self.device)

    @property
    def fixed(self) -> dict[str, str | int | None]:
        """All that moves the bits of a feature beside its key, where the plan is `plain`."""
        import torch

        return {
            "device": self.device_name,
            "capability": torch.backends.cpu.get_cpu_capability() if self.on_cpu else None,
            "threads": torch.get_num_threads(),
            "batch_size": self.batch_size,
            "torch": torch.__version__,
        }

    @contextlib.contextmanager
    def reproducible(self) -> Iterator[None]:
        """Have torch take deterministic algorithms, where this is deterministic and as long as it lasts.

        Where an operation has none, torch says so in a warning.
        """
        if not self.deterministic:
            yield
            return
        import torch

        if not self.on_cpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def dtype(self) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]


def _gpu(device: str) -> str:
    """`device`, which is `auto`, `cuda` or `cuda:N`; torch is asked where a GPU's driver is there, and else left alone.

    Raises:
        ClipbenchError: this machine has none of that name.
    """
    there = False
    if "torch" in sys.modules or _driver():
        import torch

        there = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if there else "cpu"
    if not there:
        raise ClipbenchError(f"--device {device}: this machine has no CUDA device", hint="use --device cpu")
    count = torch.cuda.device_count()
    if device != "cuda" and device not in [f"cuda:{index}" for index in range(count)]:
        raise ClipbenchError(
            f'unknown device "{device}"; this machine has {count} CUDA devices',
            hint="allowed: auto, cpu, cuda, cuda:N, counted from 0",
        )
    return device


def _lower() -> Precision:
    """What GPUs encode in: bf16, or fp16 where they have no bf16."""
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"


def _driver() -> bool:
    """Whether there may be a GPU that torch can use; asking torch itself takes seconds, to import it."""
    if sys.platform == "darwin":
        return False
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):  # noqa: PTH110 - AMD's, and no file
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory in this process instead of giving it back; False where it cannot.

    A forward pass on a CPU frees and asks for the same large buffers again and again. By default glibc maps and
    unmaps each of them, and the kernel clears every page anew: a third of a ResNet-50's time. For programs, not
    libraries: it holds for the whole process, which from then on keeps its peak.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


#: what it raises to lay a tower out by a plan that this build of torch, or this machine, does not have
UNABLE: Final = (RuntimeError, AttributeError, ImportError, OSError)


class Tower:
    """A module that follows a plan: a float32 or int64 batch in (on the device), float32 features out."""

    def __init__(self, module: nn.Module, runtime: Runtime, plan: Plan = "plain") -> None:
        self.runtime = runtime
        self.plan = plan
        self._module = _prepare(module, runtime, plan)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        import torch

        if self.plan != "plain" and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        lower = self.runtime.precision != "fp32"
        # no_grad, not inference_mode: on some CPUs autocast is three times slower under the latter.
        with (
            torch.no_grad(),
            torch.autocast(self.runtime.device.split(":")[0], self.runtime.dtype(), enabled=lower),
        ):
            features = self._module(batch)
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(batch):
            found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise NotApplicable(
                f"a tower of this model gives {found} for {len(batch)} inputs, not one row for each, so that it "
                "cannot be measured"
            )
        return features.float()


def under(module: nn.Module, runtime: Runtime, plan: str, batch: torch.Tensor, where: object) -> Tower:
    """`module` under `plan`, with which `where` was begun; tried on `batch`.

    Raises:
        ClipbenchError: this machine, or this version of clipbench, cannot run it.
    """
    import torch

    try:
        if plan not in get_args(Plan):
            raise ImportError(f"it knows {', '.join(get_args(Plan))}")
        tower = Tower(module, runtime, plan)  # type: ignore[arg-type]
        if plan != "plain":
            tower(batch)
    except UNABLE as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ClipbenchError(
            f"the features in {where} were begun under the plan {plan}, which cannot be run here: {first_line(error)}",
            hint="go on where they were begun; or delete that folder to encode them anew, all under one plan",
        ) from None
    return tower


def _prepare(module: nn.Module, runtime: Runtime, plan: Plan) -> Rows:
    import torch

    if plan == "plain":
        return module
    tensors = [*module.parameters(), *module.buffers()]
    module = copy.deepcopy(module, {id(t): t for t in tensors})  # on the same parameters and buffers
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.ndim == 4:
                laid_out = parameter.detach().clone(memory_format=torch.channels_last)
                setattr(part, name, torch.nn.Parameter(laid_out, requires_grad=False))
    if plan == "packed":
        from clipbench.encoding.onednn import pack

        return pack(module, runtime.dtype())
    if plan == "compiled":
        return _compile(module, runtime)
    return module


def _compile(module: nn.Module, runtime: Runtime) -> Rows:
    import torch

    # On a machine without a GPU, its extension builder says so at length, once, as a warning.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    options: dict[str, Any] = {"freezing": True} if runtime.on_cpu else {}
    compiled: Rows = torch.compile(module, dynamic=False, options=options)

    def run(batch: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compiled(batch)

    return run


@cache
def processor() -> tuple[str, str]:
    """This machine's processor: its name, and the flags of what it can do, where the system tells (Linux on x86)."""
    said: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a real file
            for line in file:
                name, _, value = line.partition(":")
                said.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return said.get("model name") or platform.processor() or platform.machine(), said.get("flags", "")
