"""How FBGEMM's Adam is made to count updates, on a stand-in for it: the kernel itself runs on GPUs only."""

import pytest
import torch
from torch import Tensor

from dmt.modules import kernels


class CountingTables:
    """Counts as FBGEMM does: each forward, evaluation's too, and hands the count to that forward's backward."""

    def __init__(self) -> None:
        self.iter, self.iter_cpu = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self.weights = torch.zeros(3, 4, requires_grad=True)
        self.corrected_by: list[int] = []

    def split_embedding_weights(self) -> list[Tensor]:
        return [self.weights]

    def get_optimizer_state(self) -> list[dict[str, Tensor]]:
        return [{"exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.zeros(3, 4)}]

    def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
        if self.iter_cpu.item() == 0:
            self.iter_cpu.fill_(self.iter.item())
        count = int(self.iter_cpu.add_(1))
        self.iter.add_(1)
        output = self.weights[indices] * 1
        if output.requires_grad:
            self.weights.register_hook(lambda _: self.corrected_by.append(count))
        return output


@pytest.mark.parametrize(("rows", "dtype"), [(2**30, torch.int32), (2**30 + 1, torch.int64)])
def test_ids_are_wide_enough_to_number_the_rows_of_all_tables(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    class Tables(CountingTables):
        def get_optimizer_state(self) -> list[dict[str, Tensor]]:
            return []

        def __call__(self, indices: Tensor, offsets: Tensor, factors: Tensor | None) -> Tensor:
            assert indices.dtype == offsets.dtype == dtype
            return self.weights[indices]

    monkeypatch.setattr(kernels, "fbgemm_tables", lambda *_, **__: Tables())
    kernel = kernels.FbgemmKernel([(rows, 4), (2**30 - 1, 4)], [0, 1], options={}, device=torch.device("cpu"))
    ids = torch.tensor([0, 2], dtype=torch.int32)
    assert kernel(ids, torch.arange(3, dtype=torch.int32), None).shape == (2, 4)


def test_fbgemms_adam_counts_updates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = CountingTables()
    monkeypatch.setattr(kernels, "fbgemm_tables", lambda *_, **__: tables)
    kernel = kernels.FbgemmKernel([(3, 4)], [0], options={}, device=torch.device("cpu"))
    batch = torch.tensor([0, 2]), torch.arange(3), None
    assert list(kernel.states) == ["exp_avg", "exp_avg_sq"]
    assert kernel.step is not None and kernel.step.shape == ()

    def train_step() -> int:
        output = kernel(*batch)
        tables.corrected_by.clear()
        output.sum().backward()
        return tables.corrected_by[-1]

    with torch.no_grad():
        kernel(*batch)
    assert kernel.step == 0 and train_step() == 1
    with torch.no_grad():
        kernel(*batch)
    kernel(*batch)  # a forward whose backward never comes
    assert kernel.step == 1 and train_step() == 2 and kernel.step == 2
    kernel.step.fill_(40)  # what load_state_dict does
    assert train_step() == 41 and kernel.step == 41
