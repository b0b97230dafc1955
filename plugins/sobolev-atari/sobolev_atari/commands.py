"""The commands `sobolev teach` and `sobolev collect`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sobolev import SobolevError
from sobolev.optional import need
from sobolev_atari.settings import read_teach_settings


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the training; default teachers/NAME.")
@click.option("--half", is_flag=True, help="Store (and score) the weights in half precision.")
@click.option("--episodes", default=30, show_default=True, help="Whole games that score the result.")
def teach(recipe: Path, output: Path | None, half: bool, episodes: int) -> None:
    """Train a teacher with Stable-Baselines3 on one or many parallel games.

    RECIPE holds the settings of a training (environment, steps, ...), or is a recipe whose target trains its own
    teacher. The same command goes on with an interrupted training. Writes teacher.safetensors and its card
    teacher.json, besides training.jsonl and checkpoint.pt.
    """
    settings = read_teach_settings(recipe)
    need("stable_baselines3", "stable-baselines3", "training a teacher")
    from sobolev_atari.teach import teach_and_write

    directory = output or Path("teachers") / recipe.stem
    try:
        teach_and_write(
            settings,
            directory,
            directory / "teacher.safetensors",
            command=f"sobolev teach {recipe.name}" + (" --half" if half else ""),
            half=half,
            episodes=episodes,
            say=click.echo,
        )
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on from {directory}", err=True)
        sys.exit(130)


@click.command()
@click.argument("teacher")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--environment", help="What is played; default: what the teacher's card says.")
@click.option("--states", default=100_000, show_default=True, help="Decisions to store.")
@click.option("--streams", default=16, show_default=True, help="Games played in parallel.")
@click.option("--sticky", default=0.0, show_default=True, help="Probability that the emulator repeats an action.")
@click.option("--seed", default=0, show_default=True, help="Of games and actions.")
@click.option("--threads", default=1, show_default=True, help="Of the emulator.")
def collect(
    teacher: str,
    output: Path,
    environment: str | None,
    states: int,
    streams: int,
    sticky: float,
    seed: int,
    threads: int,
) -> None:
    """Store the states that a teacher meets while it plays.

    TEACHER is a shipped one (pong, breakout, space_invaders), a .safetensors file or a Stable-Baselines3 .zip; OUTPUT
    is the folder of the dataset. The same command goes on with an interrupted collection.
    """
    from rich.progress import Progress

    from sobolev_atari.collect import collect as gather
    from sobolev_atari.collect import dataset_meta
    from sobolev_atari.environments import find_environment
    from sobolev_atari.teachers import check_fit, load_teacher

    loaded = load_teacher(teacher, Path.cwd())
    name = environment or loaded.card.get("environment")
    if not name:
        raise SobolevError(f"{teacher} does not say what it plays: give --environment")
    games = find_environment(name)
    check_fit(loaded, games, teacher)
    meta = dataset_meta(games, loaded.digest, states, streams=streams, sticky=sticky, seed=seed)
    try:
        with Progress() as bar:
            task = bar.add_task(f"collect {games.name}", total=meta.size)
            gather(
                loaded.network, games, output, meta,
                progress=lambda done: bar.update(task, completed=done), threads=threads,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on in {output}", err=True)
        sys.exit(130)
    click.echo(f"{meta.size} decisions of {games.name} in {output}")
