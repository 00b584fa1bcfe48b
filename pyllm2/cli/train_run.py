"""`pyllm2 train gpt2` and `pyllm2 train llama2`: a training run as the flags describe it."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from pyllm2 import __version__, backends, memory
from pyllm2.cli.output import say
from pyllm2.cli.outputs import EXISTS, check_output
from pyllm2.cli.progress import JsonLines, Progress
from pyllm2.cli.train_command import RUN_FILE, extended, remember, resume_command
from pyllm2.compiling.processors import processors
from pyllm2.errors import ConfigError, FileError, FormatError, UsageError, os_errors
from pyllm2.formats.llmc_state import is_shuffled
from pyllm2.inference.sample import sample
from pyllm2.tokenizers import load_tokenizer
from pyllm2.training import llmc_run
from pyllm2.training.bits import bytes_per_token
from pyllm2.training.checkpoint import Checkpoint, CheckpointFile, differences, processes_of
from pyllm2.training.folder import NoFolder, RunFolder, checkpoints, open_folder
from pyllm2.training.loader import DataLoader
from pyllm2.training.log import require_regular
from pyllm2.training.plot import can_plot, image_format, plot_log, require_plot
from pyllm2.training.processes import Processes
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report
from pyllm2.training.signals import StopRequest, stop_requests
from pyllm2.training.trainer import Trainer

MODEL_FILE, TOKENIZER_FILE, PLOT_FILE = "model.bin", "tokenizer.bin", "loss.png"
OWN_FILES = (MODEL_FILE, TOKENIZER_FILE, PLOT_FILE, RUN_FILE)  # beside checkpoints and log
# The fields of a Recipe that are flags of the same name.
SAME_NAMES = (
    "batch context learning_rate warmup schedule final_fraction weight_decay decay beta1 beta2 "
    "clip skip_loss_z skip_norm_z dropout seed"
).split()


@dataclass(frozen=True)
class Machine:
    """What a run computes with."""

    backend: str
    threads: int  # per process
    processes: int

    def identity(self) -> dict[str, Any]:
        """As it is saved in a checkpoint."""
        alone = {"backend": self.backend, "threads": self.threads}
        return alone if self.processes == 1 else {**alone, "processes": self.processes}


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs, checked before its folder is changed."""

    family: Any  # the module pyllm2.gpt2.family or pyllm2.llama2.family
    tokenizer: Any
    model: Any
    train_data: DataLoader
    validation_data: DataLoader
    recipe: Recipe
    plan: Plan
    identity: dict[str, Any]
    bytes_per_token: float | None  # of the validation data; None without a tokenizer
    begun: Checkpoint | None  # on rank 0: the run of llm.c to go on with


def main(options: argparse.Namespace, processes: Processes, locked: bool = False) -> int:
    """Train; returns 0 when the run is finished, 130 or 143 when a signal has stopped it.

    locked: this process has locked the folder already
    """
    asked = argparse.Namespace(**{**vars(options), **getattr(options, "asked", {})})
    setup = processes.together(lambda: _prepare(options, processes))
    if options.extend:
        asked.steps = setup.recipe.steps
    _require_same(processes, setup)
    with stop_requests() as stop, _folder(options, processes, locked) as folder:
        progress = None
        if processes.rank == 0:
            kind = JsonLines if options.json else Progress
            progress = kind(setup.recipe, setup.tokenizer, setup.bytes_per_token)
        trainer = _trainer(options, setup, folder, progress, stop, processes)
        if options.resume:
            _resume(trainer, folder, options.other_engine, longer=bool(options.extend))
        elif _is_llmc_run(options):
            _go_on_from_llmc(options.init, trainer, setup.begun)
        if processes.rank == 0:
            remember(asked)
            if setup.tokenizer is not None:  # so that a checkpoint can be tried at once
                setup.tokenizer.write_tokenizer(os.path.join(options.out, TOKENIZER_FILE))
        try:
            finished = trainer.run()
        finally:
            if progress is not None:
                progress.close()
        number = max(processes.each(stop.number or 0))
        if progress is not None:
            _finish(options, setup, trainer, progress, finished)
    return 0 if finished else 128 + number


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written or that exist, before any work."""
    going_on = options.resume or options.force
    # What a run that was killed before its first checkpoint has left is replaced.
    left = {TOKENIZER_FILE} if os.path.exists(os.path.join(options.out, RUN_FILE)) else set()
    for name in OWN_FILES:
        path = os.path.join(options.out, name)
        with os_errors(path):
            require_regular(path)
        if os.path.exists(path):
            check_output(path, options.init, force=True)
            own = name in left or name == RUN_FILE or _same(path, options.tokenizer)
            if not (own or going_on or checkpoints(options.out)):
                raise FileError(path, EXISTS)
    if options.plot:
        require_plot()
        image_format(options.plot)
        check_output(options.plot, options.init, force=going_on)


@contextmanager
def _folder(
    options: argparse.Namespace, processes: Processes, locked: bool
) -> Iterator[RunFolder | NoFolder]:
    """The run folder, which rank 0 writes; the others fail if it cannot be opened."""
    with ExitStack() as stack:

        def enter() -> RunFolder | NoFolder:
            if processes.rank > 0:
                return NoFolder()
            anew = OWN_FILES if options.force else None
            return stack.enter_context(open_folder(options.out, options.resume, anew, locked))

        yield processes.together(enter)


def _finish(
    options: argparse.Namespace, setup: Setup, trainer: Trainer, progress: Progress, finished: bool
) -> None:
    """Write the model as it is, tokenizer and plot, and say what to do next."""
    target = os.path.join(options.out, MODEL_FILE)
    setup.family.save_parameters(target, setup.model.config, setup.model.params)
    _plot(options, trainer.folder.log.path, setup.bytes_per_token)
    say(progress.summary(trainer.step))
    if finished:
        more = resume_command(options.family, options.out, "--extend 1000")
        say(f"to train it further: {more}; into another folder: --init {shlex.quote(target)}")
    else:
        say(f"stopped after {trainer.step} of {setup.recipe.steps} steps")
        say(f"to go on: {resume_command(options.family, options.out)}")
    if setup.tokenizer is not None:
        say(f"to try it: pyllm2 generate {shlex.quote(options.out)}")
    say(f"model: {target}")
    progress.end(trainer.step, finished, target)


def _require_same(processes: Processes, setup: Setup) -> None:
    """Refuse ranks with other versions, arguments, data or backends. Raises UsageError."""
    mine = {"pyllm2": __version__, "numpy": np.__version__, "run": setup.identity}
    found = processes.each({**mine, "plan": asdict(setup.plan)})

    def check() -> None:
        for rank, other in enumerate(found):
            if lines := differences(found[0], other, where="rank 0"):
                raise UsageError(f"rank {rank} is in another run: {'; '.join(lines)}")

    processes.together(check)


def _prepare(options: argparse.Namespace, processes: Processes) -> Setup:
    """Open and check all inputs."""
    if processes.rank == 0:
        _check_outputs(options)
    machine = Machine(
        options.backend or backends.default(),
        options.threads or processors(),
        processes.size,
    )
    family = importlib.import_module(f"pyllm2.{options.family}.family")
    tokenizer = _tokenizer(options)
    config = _config(options, family, tokenizer, processes)
    V, B, T = config.vocab_size, options.batch, options.context
    share = processes.rank, processes.size
    shuffle = not _is_llmc_run(options) or is_shuffled(llmc_run.state_file(options.init, 0))
    train_data = DataLoader(
        options.train, B, T, *share, shuffle=shuffle, vocab_size=V, seed=options.seed
    )
    validation_data = DataLoader(options.val, B, T, *share, vocab_size=V)
    recipe, plan = _recipe(options, train_data), _plan(options)
    identity = {
        "model": {"family": options.family, **_sizes(config)},
        "recipe": recipe.identity(),
        "data": train_data.describe(),
        "engine": machine.identity(),
    }
    model = _model(options, family, config, machine)
    size = bytes_per_token(tokenizer, validation_data.shards[0]) if tokenizer else None
    data = train_data, validation_data
    begun = None
    if _is_llmc_run(options) and not options.resume and processes.rank == 0:
        begun = _read_llmc_run(options.init, model, recipe.steps)
    return Setup(family, tokenizer, model, *data, recipe, plan, identity, size, begun)


def _tokenizer(options: argparse.Namespace) -> Any:
    """--tokenizer, else tokenizer.bin beside the training shards, which is set as the flag.

    Raises UsageError if nothing says how large the vocabulary of a new model is.
    """
    if options.tokenizer:
        return load_tokenizer(options.tokenizer)
    init, beside = options.init, os.path.join(os.path.dirname(options.train[0]), TOKENIZER_FILE)
    known = _is_file(init) or "vocab=" in init
    if os.path.isfile(beside):
        found = load_tokenizer(beside)
        size = _vocabulary(options) if known else found.vocab_size
        if size == found.vocab_size:
            options.tokenizer = beside
            return found
        say(f"{beside} has {found.vocab_size} tokens, the model {size}: samples are ids")
    elif not known and "=" in init:
        raise UsageError(
            f"--init {init}: the size of the vocabulary is not known (there is no {beside}): "
            "add --tokenizer FILE, or vocab=N"
        )
    return None


def _vocabulary(options: argparse.Namespace) -> int:
    """The vocabulary size that --init names, in a file or as vocab=N."""
    family = importlib.import_module(f"pyllm2.{options.family}.family")
    read = family.load_config if _is_file(options.init) else family.descriptor
    return int(read(_model_file(options)).vocab_size)


def _sizes(config: Any) -> dict[str, int]:
    """The sizes of a model that can be trained; fields with a default do not change it."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.default is MISSING}


def _same(path: str, other: str | None) -> bool:
    return other is not None and os.path.exists(other) and os.path.samefile(path, other)


def _is_file(init: str) -> bool:
    """Whether --init names a checkpoint; otherwise it is the shape of a new model."""
    return os.path.exists(init) or init.endswith(".bin")


def _is_llmc_run(options: argparse.Namespace) -> bool:
    """Whether --init is the folder of a run of llm.c's trainer."""
    return options.family == "gpt2" and os.path.isdir(options.init)


def _model_file(options: argparse.Namespace) -> str:
    return llmc_run.model_file(options.init) if _is_llmc_run(options) else options.init


def _config(options: argparse.Namespace, family: Any, tokenizer: Any, processes: Processes) -> Any:
    """The model's shape, checked against the flags, the tokenizer and the memory."""
    B, T = options.batch, options.context
    if _is_file(options.init):
        config = family.load_config(_model_file(options))
    else:
        config = family.descriptor(options.init, tokenizer.vocab_size if tokenizer else None)
    if config.seq_len < T:
        raise UsageError(f"--context {T}: the model has {config.seq_len} positions")
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise FileError(
            options.tokenizer,
            f"has {tokenizer.vocab_size} tokens, the model expects {config.vocab_size}",
        )
    n, kept = config.parameters(), family.activation_floats(config, B, T)
    sharers = processes.size if options.zero else 1
    state = 8 * n + 8 * -(-n // sharers)  # parameters and gradient; both moments
    here = processes.neighbours()
    memory.require(
        here * (state + 4 * kept),
        f"training at batch {B}, context {T}" + (f" in {here} processes" if here > 1 else ""),
        "lower --batch or --context, or take a smaller model",
    )
    each = " per process" if processes.size > 1 else ""
    say(
        f"{n:,} parameters; memory{each}: {state / 1e6:,.0f} MB for parameters, gradient and "
        f"moments, about {4 * kept / 1e6:,.0f} MB for activations at batch {B}, context {T}"
    )
    return config


def _model(options: argparse.Namespace, family: Any, config: Any, machine: Machine) -> Any:
    """The model with its initial weights; a resumed run reads its weights later."""
    if options.resume:
        params = family.empty_parameters(config)
    elif _is_file(options.init):
        _, params = family.load_parameters(_model_file(options))
    else:
        params = family.initial_parameters(config, options.seed)
    many = f"{machine.processes} processes, each " if machine.processes > 1 else ""
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    say(f"{many}backend {machine.backend}, {threads}")
    engine = backends.engine(machine.backend, options.threads, options.family)
    return family.build(config, params, engine, options.dropout, options.seed)


def _trainer(
    options: argparse.Namespace,
    setup: Setup,
    folder: RunFolder | NoFolder,
    report: Report | None,
    stop: StopRequest,
    processes: Processes,
) -> Trainer:
    model, config = setup.model, setup.model.config
    start = config.vocab_size - 1
    if setup.tokenizer:
        start = max(setup.tokenizer.begin, setup.tokenizer.end, 0)
        start = setup.tokenizer.begin if setup.tokenizer.begin >= 0 else start
    decoder, count = setup.family.decoder(model), setup.plan.sample_tokens
    backend = setup.identity["engine"]["backend"]
    return Trainer(
        model,
        backends.ops(backend, options.threads, "training"),
        setup.recipe,
        setup.plan,
        setup.train_data,
        setup.validation_data,
        folder,
        setup.family.MATRICES,
        setup.identity,
        lambda: sample(decoder, start, count, backend),
        report,
        stop,
        processes,
        zero=options.zero == 1,
        bytes_per_token=setup.bytes_per_token,
    )


def _recipe(options: argparse.Namespace, data: DataLoader) -> Recipe:
    tokens = options.batch * options.context * data.processes
    total_batch = options.total_batch or tokens
    epoch = max(1, data.num_batches * tokens // total_batch)
    same = {name: getattr(options, name) for name in SAME_NAMES}
    steps = options.steps or epoch
    if options.extend:
        steps = extended(options.out, options.extend, steps)
    return Recipe(total_batch=total_batch, steps=steps, processes=data.processes, **same)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        validate_every=options.val_every,
        validation_batches=options.val_batches,
        sample_every=options.sample_every,
        sample_tokens=options.sample_tokens,
        save_every=options.save_every,
        keep=options.keep,
    )


def _resume(
    trainer: Trainer, folder: RunFolder | NoFolder, other_engine: bool, longer: bool = False
) -> None:
    """Go on where the newest checkpoint was written; rank 0 reads it for all ranks.

    longer: the run has another number of steps now, which is saved before the first of them
    """
    checkpoint = trainer.processes.together(
        lambda: _newest_checkpoint(trainer, folder, other_engine, longer)
    )
    newest = folder.newest() or ""
    try:
        trainer.restore(checkpoint)
    except ConfigError as error:
        raise FormatError(newest, str(error)) from None
    if longer:
        trainer.save()
    folder.prune(trainer.plan.keep)  # the run may have been killed before it did so
    say(f"resumed from {newest}")


def _read_llmc_run(init: str, model: Any, steps: int) -> Checkpoint:
    """The newest checkpoint of llm.c in a folder. Raises FileError, FormatError."""
    found = llmc_run.read_run(init, model.params.shapes, model.params.flat.copy)
    if found.step > steps:
        raise FileError(init, f"step {found.step} is beyond the run's {steps}")
    return found


def _go_on_from_llmc(init: str, trainer: Trainer, begun: Checkpoint | None) -> None:
    """Go on where llm.c's checkpoint was written, on all ranks. begun: on rank 0"""
    try:
        trainer.restore(begun)
    except ConfigError as error:
        hint = "--batch, --context and --train must be those of llm.c's run"
        raise FormatError(llmc_run.state_file(init, 0), f"{error}: {hint}") from None
    trainer.saved = None  # not by us
    say(f"goes on from step {trainer.step} of llm.c in {init}")


def _newest_checkpoint(
    trainer: Trainer, folder: RunFolder | NoFolder, other_engine: bool, longer: bool
) -> Checkpoint | None:
    """The checked checkpoint on rank 0; None on the others."""
    newest = folder.newest()
    if newest is None:
        return None
    file = CheckpointFile(newest)
    file.require_same_run(trainer.identity, other_engine, longer)
    if file.step > trainer.recipe.steps:
        raise FileError(newest, f"step {file.step} is beyond the run's {trainer.recipe.steps}")
    before, now = processes_of(file.identity), trainer.processes.size
    if before != now:
        say(f"saved by {before} processes, resumed by {now}: the last bits differ from here on")
    return file.read(trainer.model.params.flat.size)


def _plot(options: argparse.Namespace, log: str, bytes_per_token: float | None) -> None:
    if options.plot or can_plot():
        plot_log(log, options.plot or os.path.join(options.out, PLOT_FILE), bytes_per_token)
