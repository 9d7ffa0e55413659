"""``vmm fuzz``: random scenarios, judged; what differs is minimised and kept."""

import math
import secrets
from pathlib import Path

import click

from vmm.cli.input.files import allow_large
from vmm.cli.options.dask import dask_option, for_hosts, not_with_dask
from vmm.cli.options.paths import FilePath
from vmm.cli.options.required import OptionalValues, require_run_option
from vmm.cli.options.shard import shard_option
from vmm.cli.options.whitebox import debug_info_option, looking, white_box_option
from vmm.cli.output.errors import Failure
from vmm.cli.running.host import look_at_host, require_usable
from vmm.host.cpus import allowed
from vmm.scenario.demand import Limits
from vmm.verdict import statuses
from vmm.verdict.judge import Status

_MOST_JOBS = 16 * len(allowed())
"""More only take memory: each worker is a process of about 50 MB."""

_NOT_WITH_DASK = (
    *("shard", "corpus", "resume", "minimise", "white_box", "debug_info"),
    "required",
)


class Broken(Failure):
    """This program failed, which says nothing about the kernel."""

    exit_code = statuses.INTERNAL_ERROR


def _time(ctx: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no time; without --seconds it runs until Ctrl-C")
    return value


@click.command(cls=OptionalValues)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Generate the same scenarios again."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    callback=_time,
    help="End after this time (see above).",
)
@click.option(
    "--operations", type=click.IntRange(1), metavar="N", help="End after this many operations."
)
@click.option(
    "--scenarios",
    type=click.IntRange(1),
    metavar="N",
    help="End after this many: the same ones in each run.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, _MOST_JOBS),
    metavar="N",
    help="Worker processes; by default one a CPU.",
)
@shard_option("the same --seed")
@click.option(
    "--findings",
    type=click.IntRange(1),
    default=20,
    metavar="N",
    help="End after this many findings; by default 20.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=FilePath(path_type=Path, file_okay=False),
    default=Path("findings"),
    help="Where findings go; by default findings/.",
)
@click.option(
    "--corpus",
    metavar="DIR",
    type=FilePath(path_type=Path, file_okay=False),
    help="Keep scenarios that cover something new, and begin with them.",
)
@click.option("--resume", is_flag=True,
              help="Name what was under way at a crash, and go on after it.")  # fmt: skip
@click.option("--minimise", "--shrink", "minimise", metavar="SCENARIO.json",
              type=FilePath(path_type=Path, exists=True, dir_okay=False),
              help="Only minimise this scenario.")  # fmt: skip
@click.option("--merge", is_flag=True, help="Only gather the findings of the folders DIR...")
@white_box_option
@debug_info_option
@allow_large
@dask_option
@require_run_option
@click.argument("folders", nargs=-1, metavar="[DIR]...", type=FilePath(path_type=Path))
@click.pass_context
def fuzz(
    ctx: click.Context,
    seed: int | None,
    seconds: float | None,
    operations: int | None,
    scenarios: int | None,
    jobs: int | None,
    shard: tuple[int, int],
    findings: int,
    out: Path,
    corpus: Path | None,
    resume: bool,
    minimise: Path | None,
    merge: bool,
    limits: Limits,
    white_box: bool | None,
    debug_info: Path | None,
    dask: str | None,
    required: int,
    folders: tuple[Path, ...],
) -> None:
    """Run random scenarios on this kernel and judge them.

    What differs is minimised to the fewest operations, and becomes a folder under --out: a
    scenario, a C program, a history, and a text in the form of a bug report. Without --seconds,
    --scenarios and --operations it runs until Ctrl-C.

    With --scenarios and --operations one seed has the same findings in each run, by whichever
    worker: they are minimised after the last scenario. --operations are shared among --jobs.

    When the time is over, what was found is minimised and written for at most a quarter of
    --seconds longer, or 20 s if that is more; what is not minimised by then is left as it was.

    A random scenario may ask what the model does not know: it is judged up to there, and counted.
    The run is inconclusive (status 3) if that is so with all of them, if a scenario hung or died,
    or if the run ended before its time. Status 1 is for differences, and complaints of the kernel.
    """
    if merge != bool(folders):
        raise click.UsageError("--merge needs folders, and nothing else does")
    if merge:
        from vmm.cli.fuzzing import merge_folders

        ctx.exit(merge_folders(folders, out))
    if dask is not None:
        from vmm.cli.fleet import Budget, fuzz_on

        not_with_dask(ctx, _NOT_WITH_DASK)
        budget = Budget(seconds, operations, scenarios)
        options = for_hosts(ctx, ("jobs", "findings"))
        ctx.exit(fuzz_on(dask, _seed(seed), budget, out, options))
    host = look_at_host()
    require_usable(host, required)
    from vmm.cli.fuzzing import minimise_one, run_plan
    from vmm.fuzz.tally import Plan

    if minimise is not None:
        with looking(white_box, debug_info):
            ctx.exit(minimise_one(minimise, host, out, limits))
    first = 0
    if resume:
        if seed is not None or shard != (1, 1):
            raise click.UsageError("--resume takes --seed and --shard from the journal")
        from vmm.cli.fuzzing import resumed

        seed, shard, first = resumed(out)
    plan = Plan(
        seed=_seed(seed),
        out=out,
        seconds=seconds,
        operations=operations,
        scenarios=scenarios,
        jobs=jobs or len(allowed()),
        shard=shard,
        corpus=corpus,
        first=first,
        max_findings=findings,
    )
    with looking(white_box, debug_info):
        ctx.exit(_status(run_plan(plan, host)))


def _seed(wanted: int | None) -> int:
    return secrets.randbelow(1 << 32) if wanted is None else wanted


def _status(tally: object) -> int:
    from vmm.fuzz.tally import Tally

    assert isinstance(tally, Tally)
    if tally.differs:
        if tally.failure:
            click.echo(f"vmm: internal error\n{tally.failure}", err=True)
        return Status.DIFFERS.exit_status
    if tally.failure:
        raise Broken(f"internal error: this says nothing about the kernel\n{tally.failure}")
    if tally.findings or tally.again or tally.lost or tally.ended_early or tally.disturbed:
        return Status.INCONCLUSIVE.exit_status
    if tally.inconclusive == tally.scenarios:
        return Status.INCONCLUSIVE.exit_status
    return Status.PASSED.exit_status
