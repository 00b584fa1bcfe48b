"""`pyllm2 train`: flags to a trainer, and the loop under a lock and with signals caught."""

from __future__ import annotations

import argparse
import importlib
import os
from dataclasses import asdict, dataclass
from typing import Any

from pyllm2 import backends, memory
from pyllm2.cli.common import say
from pyllm2.cli.progress import Progress
from pyllm2.errors import FileError, UsageError
from pyllm2.training.checkpoint import CheckpointFile
from pyllm2.training.folder import RunFolder, open_folder
from pyllm2.training.loader import DataLoader
from pyllm2.training.plot import can_plot, plot_log, require_plot
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report
from pyllm2.training.sample import sample
from pyllm2.training.signals import StopRequest, stop_requests
from pyllm2.training.trainer import Trainer

MODEL_FILE, TOKENIZER_FILE, PICTURE_FILE = "model.bin", "tokenizer.bin", "loss.png"


@dataclass(frozen=True)
class Engine:
    """Which backend computes, with how many threads."""

    backend: str
    threads: int


@dataclass(frozen=True)
class Setup:
    """What a run needs before it may touch its folder."""

    engine: Engine
    family: Any  # pyllm2.gpt2.family or pyllm2.llama2.family
    tokenizer: Any
    model: Any
    train_data: DataLoader
    validation_data: DataLoader
    recipe: Recipe
    plan: Plan


def main(options: argparse.Namespace) -> int:
    """Train; 0 when it is done, 130 or 143 when a signal has stopped it."""
    if options.family == "text":
        return importlib.import_module("pyllm2.cli.train_text").main(options)
    target = os.path.join(options.out, MODEL_FILE)
    _refuse_overwriting(options.init, target)
    if options.plot:
        require_plot()
    setup = _prepare(options)
    with stop_requests() as stop, open_folder(options.out, options.resume) as folder:
        progress = Progress(setup.recipe, setup.tokenizer)
        trainer = _trainer(options, setup, folder, progress, stop)
        if options.resume:
            _resume(trainer, folder, options.force)
        try:
            finished = trainer.run()
        finally:
            progress.close()
        if finished:
            setup.family.save_parameters(target, setup.model.config, setup.model.params)
            if setup.tokenizer is not None:
                beside = os.path.join(options.out, TOKENIZER_FILE)
                setup.tokenizer.write_tokenizer(beside)
            _plot(options, folder)
        say(progress.summary(trainer.step))
        if not finished:
            say(f"stopped after {trainer.step} of {setup.recipe.steps} steps; --resume goes on")
            return 128 + (stop.number or 0)
        say(f"model: {target}")
    return 0


def _prepare(options: argparse.Namespace) -> Setup:
    """Everything that can be wrong with the input is found here."""
    engine = Engine(options.backend or backends.default(), options.threads or _processors())
    family = importlib.import_module(f"pyllm2.{options.family}.family")
    tokenizer = family.load_tokenizer(options.tokenizer) if options.tokenizer else None
    config = _config(options, family, tokenizer)
    V, B, T = config.vocab_size, options.batch, options.context
    train_data = DataLoader(options.train, B, T, shuffle=True, vocab_size=V, seed=options.seed)
    validation_data = DataLoader(options.val, B, T, vocab_size=V)
    recipe, plan = _recipe(options, train_data), _plan(options)
    return Setup(
        engine, family, tokenizer, _model(options, family, config, engine), train_data,
        validation_data, recipe, plan,
    )  # fmt: skip


def _processors() -> int:
    """How many this process may use: what a backend takes if nobody says otherwise."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_overwriting(source: str, target: str) -> None:
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(f"{target}: the output would overwrite the input")


def _is_file(init: str) -> bool:
    """Whether --init is a checkpoint; otherwise it describes a new model."""
    return os.path.exists(init) or init.endswith(".bin")


def _config(options: argparse.Namespace, family: Any, tokenizer: Any) -> Any:
    """The shape, when model, flags, vocabulary and this machine go together."""
    B, T = options.batch, options.context
    if _is_file(options.init):
        config = family.load_config(options.init)
    else:
        config = family.descriptor(options.init, tokenizer.vocab_size if tokenizer else None)
    if config.seq_len < T:
        raise UsageError(f"--context {T}: the model has {config.seq_len} positions")
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise FileError(
            options.tokenizer,
            f"has {tokenizer.vocab_size} tokens, the model expects {config.vocab_size}",
        )
    n, kept = config.parameters(), family.activations(config, B, T)
    memory.require(
        16 * n + 4 * kept,
        f"training at batch {B}, context {T}",
        "lower --batch or --context, or take a smaller model",
    )
    say(
        f"{n:,} parameters; memory: {16 * n / 1e6:,.0f} MB for parameters, gradient and moments, "
        f"about {4 * kept / 1e6:,.0f} MB for activations at batch {B}, context {T}"
    )
    return config


def _model(options: argparse.Namespace, family: Any, config: Any, engine: Engine) -> Any:
    """The model with its first weights; those of a resumed run come later."""
    if options.resume:
        params = family.empty_parameters(config)
    elif _is_file(options.init):
        _, params = family.load_parameters(options.init)
    else:
        params = family.initial_parameters(config, options.seed)
    say(f"backend {engine.backend}, {engine.threads} threads")
    ops = backends.ops(engine.backend, options.threads, options.family)
    return family.build(config, params, ops, options.dropout, options.seed)


def _trainer(
    options: argparse.Namespace, setup: Setup, folder: RunFolder, report: Report, stop: StopRequest
) -> Trainer:
    model, config = setup.model, setup.model.config
    identity = {
        "model": {"family": options.family, **asdict(config)},
        "recipe": setup.recipe.identity(),
        "data": setup.train_data.describe(),
        "engine": asdict(setup.engine),
    }
    start = setup.tokenizer.begin if setup.tokenizer else config.vocab_size - 1
    decoder, count = setup.family.decoder(model), setup.plan.sample_tokens
    return Trainer(
        model, backends.ops(setup.engine.backend, options.threads, "training"),
        setup.recipe, setup.plan, setup.train_data, setup.validation_data, folder,
        setup.family.MATRICES, identity,
        lambda: sample(decoder, start, count, setup.engine.backend), report, stop,
    )  # fmt: skip


def _recipe(options: argparse.Namespace, data: DataLoader) -> Recipe:
    tokens = options.batch * options.context
    total_batch = options.total_batch or tokens
    epoch = max(1, data.num_batches * tokens // total_batch)
    names = (
        "batch", "context", "learning_rate", "warmup", "schedule", "final_fraction",
        "weight_decay", "decay", "beta1", "beta2", "clip", "skip_loss_z", "skip_norm_z",
        "dropout", "seed",
    )  # fmt: skip
    same = {name: getattr(options, name) for name in names}
    return Recipe(total_batch=total_batch, steps=options.steps or epoch, **same)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        validate_every=options.val_every,
        validation_batches=options.val_batches,
        sample_every=options.sample_every,
        sample_tokens=options.sample_tokens,
        save_every=options.save_every,
        keep=options.keep,
    )


def _resume(trainer: Trainer, folder: RunFolder, force: bool) -> None:
    newest: Any = folder.newest()
    file = CheckpointFile(newest)
    file.require_same_run(trainer.identity, force)
    if file.step > trainer.recipe.steps:
        raise FileError(newest, f"step {file.step} is beyond the run's {trainer.recipe.steps}")
    trainer.restore(file.read(trainer.model.params.flat.size))
    say(f"resumed from {newest}")


def _plot(options: argparse.Namespace, folder: RunFolder) -> None:
    if options.plot or can_plot():
        plot_log(folder.log.path, options.plot or os.path.join(folder.path, PICTURE_FILE))
