"""What there is to know of converted logs: the content of ``manifest.json``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmt.preprocess.criteo import FORMAT_VERSION, PARTS, ConversionOptions, PartReport
from dmt.preprocess.criteo_text import CATEGORIES, INTEGERS, is_told
from dmt.preprocess.sources import Source
from dmt.schema import CategoricalFeature, FeatureSchema


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which rows are for training, validation and test, in the order of the inputs.

    Args:
        fractions: shares of all rows; ``None`` for the customary split by days: all files but the last are for
            training, of the last one the first half for validation and the second for test.
    """

    fractions: tuple[float, float, float] | None

    def ranges(self, rows_by_source: Sequence[int]) -> dict[str, tuple[int, int]]:
        """First row, and the one after the last, of each split."""
        total = sum(rows_by_source)
        if self.fractions is None:
            cuts = (total - rows_by_source[-1], total - rows_by_source[-1] + rows_by_source[-1] // 2)
        else:
            cuts = (round(total * self.fractions[0]), round(total * (self.fractions[0] + self.fractions[1])))
        return {"train": (0, cuts[0]), "valid": (cuts[0], cuts[1]), "test": (cuts[1], total)}


def describe(
    sources: Sequence[Source],
    reports: Sequence[PartReport],
    *,
    num_embeddings: Sequence[int],
    options: ConversionOptions,
    splits: Splits,
) -> dict[str, Any]:
    """The manifest: what there is to know of the converted logs."""
    rows = rows_by_source(sources, reports)
    schema = FeatureSchema(
        categorical=[
            CategoricalFeature(name=name, num_embeddings=size)
            for name, size in zip(CATEGORIES, num_embeddings, strict=True)
        ],
        dense=INTEGERS,
    )
    return {
        "version": FORMAT_VERSION,
        "schema": schema.to_dict(),
        "splits": splits.ranges(rows),
        "sources": [{"file": s.path.name, "rows": n} for s, n in zip(sources, rows, strict=True)],
        "options": asdict(options),
        "bad_lines": sum(report.num_bad for report in reports),
        "first_bad_lines": _first_bad_lines(sources, reports),
        "parts": [
            {
                "folder": sources[report.source].folder(Path(), PARTS, report.part).as_posix(),
                "rows": report.num_rows,
                "crc32": report.checksum,
            }
            for report in reports
        ],
    }


def rows_by_source(sources: Sequence[Source], reports: Sequence[PartReport]) -> list[int]:
    """Rows of each source."""
    counts = Counter[int]()
    for report in reports:
        counts[report.source] += report.num_rows
    return [counts[source.index] for source in sources]


def _first_bad_lines(sources: Sequence[Source], reports: Sequence[PartReport]) -> list[str]:
    """File, number and fault of the first ten lines that were left out, and of damaged places of files."""
    told, lines_before = list[str](), Counter[int]()
    for report in reports:
        source = sources[report.source]
        for index, reason in report.first_bad:
            if is_told(reason, num_before=len(told)):
                told.append(f"{source.name}, {source.unit} {lines_before[report.source] + index + 1}: {reason}")
        lines_before[report.source] += report.num_rows + report.num_bad
    return told
