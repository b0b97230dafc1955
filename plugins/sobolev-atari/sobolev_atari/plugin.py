"""What this package adds to `sobolev`; torch, games and Stable-Baselines3 are imported where they are used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sobolev import Kind, Register, Report, Student, Target, hookimpl
from sobolev_atari.settings import TeachSettings

Percent = Annotated[float, Field(ge=0, le=100)]


def distillation(
    *,
    teacher: Annotated[
        str | TeachSettings,
        Field(description="a shipped teacher, a .safetensors file, a Stable-Baselines3 .zip, or settings to train one"),
    ],
    environment: Annotated[
        str | None, Field(description="what is played; by default what the teacher's card says")
    ] = None,
    network: Annotated[
        Annotated[Student, Kind("student")] | None,
        Field(description="network of a .safetensors file without a card of its own"),
    ] = None,
    data: Annotated[
        str | None, Field(description="folder from `sobolev collect`; by default collected when needed")
    ] = None,
    states: Annotated[int, Field(ge=10, description="decisions to collect")] = 100_000,
    streams: Annotated[int, Field(ge=1, description="games played in parallel while collecting")] = 16,
    sticky: Annotated[float, Field(ge=0, lt=1, description="probability that the emulator repeats an action")] = 0.0,
    collect_seed: Annotated[int, Field(ge=0, description="of the games that are collected")] = 0,
    actions: Annotated[
        Literal["paper", "emulator"], Field(description="`paper` merges outputs that do the same: 3 of Pong's 6")
    ] = "paper",
    split: Annotated[
        Literal["time", "fixed-test"], Field(description="test on all that does not train, or on a fixed last part")
    ] = "time",
    train_percent: Annotated[Percent, Field(description="of the states, from the first on, that train")] = 10.0,
    validation_percent: Annotated[Percent, Field(description="of the training states, the last, that validate")] = 0.0,
    test_percent: Annotated[Percent, Field(description="of the states, the last, that test (fixed-test)")] = 20.0,
    test_states: Annotated[int | None, Field(ge=1, description="test on a random sample of this size")] = None,
    temperature: Annotated[float, Field(gt=0, description="the teacher's logits are divided by it")] = 1.0,
    memory: Annotated[int, Field(ge=0, description="bytes for Jacobians of the teacher that are kept")] = 2**29,
    episodes: Annotated[int, Field(ge=0, description="games that score the trained student; 0 for none")] = 10,
    gif: Annotated[bool, Field(description="film the trained student playing")] = True,
) -> Target:
    """A policy that plays Atari or any Gymnasium game with discrete actions, on the states that it meets."""
    from sobolev_atari.distillation import Distillation
    from sobolev_atari.policies import PolicySource

    source = PolicySource(
        teacher_name=teacher,
        environment_name=environment,
        network=network,
        data=data,
        states_wanted=states,
        streams=streams,
        sticky=sticky,
        collect_seed=collect_seed,
        merge_actions=actions == "paper",
        split=split,
        train_percent=train_percent,
        validation_percent=validation_percent,
        test_percent=test_percent,
        most_test=test_states,
        episodes=episodes,
        gif=gif,
    )
    return Distillation(source, temperature=temperature, memory=memory)


def classifier(
    *,
    teacher: Annotated[
        str, Field(description="`mlp` (two layers of 512), or timm/NAME, trained on the digits")
    ] = "mlp",
    size: Annotated[int, Field(ge=8, le=224, description="side of the images, enlarged from 8")] = 8,
    teacher_steps: Annotated[int, Field(ge=1, description="Adam steps that train the teacher")] = 1500,
    teacher_train: Annotated[int, Field(ge=1, description="digits that train the teacher, the student's too")] = 1000,
    teacher_seed: Annotated[int, Field(ge=0, description="of the teacher's weights and batches")] = 0,
    train: Annotated[int, Field(ge=1, description="digits that train")] = 200,
    validation: Annotated[int, Field(ge=0, description="digits that validate")] = 0,
    temperature: Annotated[float, Field(gt=0, description="the teacher's logits are divided by it")] = 1.0,
    memory: Annotated[int, Field(ge=0, description="bytes for Jacobians of the teacher that are kept")] = 2**28,
) -> Target:
    """A classifier of scikit-learn's digits, compressed into a smaller network."""
    from sobolev_atari.classifiers import DigitsSource
    from sobolev_atari.distillation import Distillation

    source = DigitsSource(teacher, size, teacher_steps, teacher_seed, teacher_train, train, validation)
    return Distillation(source, temperature=temperature, memory=memory)


def atari(
    *,
    size: Annotated[
        Literal["small", "paper"], Field(description="supplement 3's distilled network, or its agent")
    ] = "small",
) -> Student:
    """The convolutional networks of the paper's supplement 3, for stacks of frames."""
    from sobolev_atari.students import Convolutional

    return Convolutional(size)


def report(
    *,
    metrics: Annotated[list[str], Field(description="drawn side by side")] = [  # noqa: B006
        "test/action-error",
        "test/kl-student-teacher",
    ],
) -> Report:
    """Test errors while training by game, share of the states and approach (Figure 4), and a table."""
    from sobolev_atari.report import DistillationReport

    return DistillationReport(metrics)


@hookimpl
def register_target(register: Register) -> None:
    """Offer the targets of this package."""
    register("distillation", distillation)
    register("classifier-distillation", classifier)


@hookimpl
def register_student(register: Register) -> None:
    """Offer the students of this package."""
    register("atari", atari)


@hookimpl
def register_report(register: Register) -> None:
    """Offer the report of this package."""
    register("distillation", report)


@hookimpl
def register_command(register: Register) -> None:
    """Offer the commands of this package."""
    register("teach", "sobolev_atari.commands:teach", summary="Train a teacher with Stable-Baselines3.")
    register("collect", "sobolev_atari.commands:collect", summary="Store the states that a teacher meets.")
