"""All checks of one adapter, and what they found."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters_hub.errors import AdapterFileError
from adapters_hub.sharing.doctor.findings import CHECKS, LEVELS, Finding
from adapters_hub.sharing.doctor.subject import Subject
from adapters_hub.sharing.printable import printable


@dataclass(frozen=True)
class Report:
    """The findings on one adapter, the worst first."""

    path: Path
    findings: tuple[Finding, ...]

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "path": str(self.path),
            **{f"{level}s": len(self.of(level)) for level in LEVELS},
            "findings": [asdict(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(level))} {level}s" for level in LEVELS)
        return "\n".join(
            [f"{printable(str(self.path))}: {counts}", *(f"  {each}" for each in self.findings)]
        )


def examine(path: str | os.PathLike[str]) -> Report:
    """Make every check of a PEFT folder or a lone file, running nothing of what is in it.

    Raises `AdapterFileError` only where there is no such path.
    """
    subject = Subject(Path(path))
    if not os.path.lexists(path):
        raise AdapterFileError(f"{path}: no such folder or file")
    findings = [finding for each in CHECKS.values() for finding in each(subject)]
    return Report(subject.path, tuple(sorted(findings, key=lambda each: LEVELS.index(each.level))))
