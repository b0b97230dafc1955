"""Targets, the student and the report do what their kinds must do."""

from __future__ import annotations

from sobolev.testing import ReportSuite, StudentSuite, TargetSuite

TEACHER = {
    "environment": "CartPole-v1", "architecture": "mlp", "steps": 64, "environments": 2, "rollout": 16,
    "minibatch": 16, "epochs": 1, "evaluate_episodes": 0,
}  # fmt: skip


class TestTargets(TargetSuite):
    components = [
        {"use": "classifier-distillation", "teacher_steps": 3, "train": 20, "memory": 0},
        {"use": "classifier-distillation", "teacher_steps": 3, "train": 20},
        {"use": "distillation", "teacher": TEACHER, "states": 200, "streams": 2, "train_percent": 20, "memory": 0,
         "episodes": 0, "gif": False},
    ]  # fmt: skip


class TestStudents(StudentSuite):
    components = ["atari"]


class TestReports(ReportSuite):
    components = ["distillation"]
