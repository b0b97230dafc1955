"""Derivatives of students and targets: measured by autograd, contracted by probes, never silently wrong."""
