"""Command line: argument parsing only."""

import argparse
import json
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from convnextv2 import MissingExtra
from pipelines.commands import Parser, command, say
from pipelines.commands.analysis import add_analysis_commands
from pipelines.commands.checkpoint import add_checkpoint_commands
from pipelines.commands.data import add_data_commands
from pipelines.commands.faults import add_faults_commands
from pipelines.commands.goodput import add_goodput_command
from pipelines.commands.incidents import add_incidents_command
from pipelines.commands.presets import add_presets_command
from pipelines.commands.recipe import add_recipe_options, add_set_option, chosen_config
from pipelines.commands.replay import add_replay_command
from pipelines.commands.weights import add_weights_commands
from pipelines.config import PipelineConfig
from pipelines.graph.kinds import KINDS, stage_commands
from pipelines.graph.outline import stages_of_command, wanted_stages
from pipelines.runtime.provenance import version

DEFAULT_ROOT = Path("runs")
DESCRIPTION = "Pretrain (FCMAE), fine-tune and evaluate ConvNeXt V2."


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="convnextv2",
        description=DESCRIPTION,
        epilog="example:\n  convnextv2 demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = command(
        commands, "demo", "the whole job on Fashion-MNIST", "convnextv2 demo --rerun finetune"
    )
    add_set_option(demo)
    _add_pipeline_options(demo)
    demo.set_defaults(act=_act_pipeline, preset="demo", config=None)

    run = command(
        commands,
        "run",
        "run a preset's whole pipeline",
        "convnextv2 run imagenet1k --data /data/imagenet --set cluster.num_workers=8",
    )
    add_recipe_options(run, positional=True)
    _add_pipeline_options(run)
    run.set_defaults(act=_act_pipeline)

    for kind in stage_commands():
        stage = command(commands, kind.name, kind.help, f"convnextv2 {kind.name} {kind.example}")
        add_recipe_options(stage)
        _add_pipeline_options(stage)
        stage.set_defaults(act=_act_pipeline)

    add_presets_command(commands)
    add_data_commands(commands)
    add_analysis_commands(commands)
    add_checkpoint_commands(commands)
    add_replay_command(commands)
    add_weights_commands(commands)
    add_incidents_command(commands)
    add_goodput_command(commands)
    add_faults_commands(commands)

    doctor = command(
        commands, "doctor", "check this machine and say what to fix", "convnextv2 doctor --json"
    )
    doctor.add_argument(
        "--run-dir", type=Path, default=DEFAULT_ROOT, help="folder for runs (default: runs)"
    )
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.add_argument(
        "--gpu", action="store_true", help="check and measure the GPU instead, in five minutes"
    )
    doctor.set_defaults(act=_act_doctor)
    return parser


def _add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="the images: any layout of docs/data.md")
    parser.add_argument(
        "--cache", type=Path, help="folder on a local disk that every node copies the shards to"
    )
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--rerun", metavar="STAGE", help="redo this stage and all downstream of it")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; ends quietly when the reader of its output goes away, as `head` does."""
    try:
        try:
            return _run(arguments)
        finally:
            # Here, not when Python ends, where nobody could catch what this raises.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes both streams again when it ends, which would raise once more. Redirecting
        # them, and the exit code, follow "Note on SIGPIPE" in the manual of the module signal.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    """Parse the arguments, run the command, and turn our errors into a message and an exit code."""
    # Kubernetes stops a pod with SIGTERM: the same orderly end as with Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.time()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(argv)
    options.argv, options.began = argv, began
    try:
        code: int = options.act(options)
        return code
    except KeyboardInterrupt:
        # The other commands have no checkpoints.
        trains = options.act is _act_pipeline and options.command != "report"
        goes_on = "; the same command goes on from the last checkpoint" if trains else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, MissingExtra) as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            raise
        print(f"error: {_words(error)}", file=sys.stderr)
        return 1


def _is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads; other broken pipes are errors."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _words(error: Exception) -> str:
    from pipelines.config.resolve import ConfigError

    if not isinstance(error, ConfigError):
        return str(error)
    count = len(error.problems)
    lines = [f"{count} problem{'s' * (count > 1)} in {error.about}", *error.problems]
    return "\n  ".join(lines)


def _act_pipeline(options: argparse.Namespace) -> int:
    # In quotes, for a folder may be called 2024 or "no".
    source = [f"data.source={json.dumps(str(options.data))}"] if options.data else []
    cache = [f"data.cache={json.dumps(str(options.cache))}"] if options.cache else []
    overrides = [*options.set, *source, *cache]

    def until(config: PipelineConfig) -> Sequence[str]:
        staged = options.command in KINDS
        return stages_of_command(options.command, config) if staged else ()

    def wanted(config: PipelineConfig) -> set[str]:
        # The report shows what is there, whatever the images are.
        return set() if options.command == "report" else wanted_stages(config, until(config))

    config = chosen_config(options, overrides, wanted)
    stages = until(config)
    run_dir = options.run_dir or DEFAULT_ROOT / config.name
    say(f"{config.name} in {run_dir}")

    from rich.console import Console

    from pipelines.commands.run import Request, closing_words, run_pipeline

    request = Request(
        config=config,
        run_dir=run_dir,
        command=["convnextv2", *options.argv],
        until=stages,
        rerun=options.rerun,
        render_only=options.command == "report",
        whole_command=_whole_command(options),
        fetch_fashion_mnist="demo" in (options.preset, config.name),
        began=options.began,
    )
    outcome = run_pipeline(request)
    if options.json:
        print(json.dumps(outcome.as_json(), indent=1))
    else:
        Console(soft_wrap=True, highlight=False).print(closing_words(outcome))
    return 0


def _whole_command(options: argparse.Namespace) -> str:
    """The command that runs all stages with the settings of this one."""
    recipe = [options.preset] if options.config is None else ["--config", str(options.config)]
    argv = ["convnextv2", "run", *recipe]
    for name in ("data", "cache", "run_dir"):
        value = getattr(options, name)
        argv += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    argv += [word for override in options.set for word in ("--set", override)]
    return shlex.join(argv)


def _act_doctor(options: argparse.Namespace) -> int:
    if options.gpu:
        from pipelines.doctor.gpu.__main__ import main as check_gpu

        return check_gpu([])

    from rich.console import Console

    from pipelines.doctor.check import in_words
    from pipelines.doctor.diagnose import diagnose

    console = Console(soft_wrap=True, highlight=False)
    checks = []
    for check in diagnose(options.run_dir):
        checks.append(check)
        if not options.json:
            console.print(in_words(check))
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    return 1 if any(check.status == "fail" for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
