"""kd_det.losses is pure torch: it imports where nothing else is installed."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.conftest import ROOT

BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
NOT_NEEDED = {
    "detectron2",
    "torchvision",
    "fvcore",
    "iopath",
    "yacs",
    "PIL",
    "cv2",
    "pycocotools",
    "matplotlib",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    blocked = BLOCKED.format(blocked=NOT_NEEDED)
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=ROOT, capture_output=True, text=True)


def test_the_block_works():
    result = run(f"""
for module in {sorted(NOT_NEEDED)}:
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        print(error)
""")
    assert result.stdout.splitlines() == [f"No module named {module!r}" for module in sorted(NOT_NEEDED)]


def test_no_file_imports_anything_but_torch_and_the_losses_themselves():
    """Not even inside of a function."""
    allowed = {"torch", "kd_det", *sys.stdlib_module_names}
    for file in (ROOT / "kd_det" / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            else:
                continue
            assert all(name.split(".")[0] in allowed for name in names), (file, names)
            assert all(name.startswith("kd_det.losses") for name in names if name.startswith("kd_det")), (file, names)


def test_the_losses_run_with_torch_alone():
    result = run("""
import torch
from kd_det import losses
s, t = torch.randn(2, 4, 5)
y = torch.arange(4)
maps, others = [torch.randn(2, 3, 8, 8)], [torch.randn(2, 3, 8, 8)]
regions = [losses.multi_scale_logits(m, torch.nn.Linear(3, 5)) for m in maps + others]
values = {
    "at_loss": losses.at_loss(maps, others),
    "catkd_loss": losses.catkd_loss(maps[0], others[0]),
    "coupled_dkd_loss": losses.coupled_dkd_loss(s, t, y),
    "ctkd_loss": losses.ctkd_loss(s, t, torch.zeros(()), reversal=losses.ctkd_reversal(3)),
    "dist_loss": losses.dist_loss(s, t),
    "dkd_loss": losses.dkd_loss(s, t, y),
    "fgfi_loss": losses.fgfi_loss(maps, others, [torch.ones(2, 8, 8, dtype=torch.bool)]),
    "fitnet_loss": losses.fitnet_loss(maps, others),
    "hcl_loss": losses.hcl_loss(losses.ReviewKDFusion([3], [3], 4)(maps), others),
    "kd_loss": losses.kd_loss(losses.standardize_logits(s), losses.standardize_logits(t)),
    "kdsvd_loss": losses.kdsvd_loss(maps * 2, others * 2),
    "mlkd_loss": losses.mlkd_loss(s, t),
    "nkd_loss": losses.nkd_loss(s, t, y),
    "nst_loss": losses.nst_loss(maps, others),
    "ofd_loss": losses.ofd_loss(maps, others, [losses.ofd_margin(torch.ones(3), torch.zeros(3))]),
    "pkd_loss": losses.pkd_loss(maps, others),
    "pkt_loss": losses.pkt_loss(s, t),
    "rkd_angle_loss": losses.rkd_angle_loss(s, t),
    "rkd_distance_loss": losses.rkd_distance_loss(s, t),
    "sdd_loss": losses.sdd_loss(*regions, y[:2]),
    "sp_loss": losses.sp_loss(maps, others),
}
print(all(name in losses.__all__ and float(value) >= 0 for name, value in values.items()))
""")
    assert result.stdout.strip() == "True", result.stderr


def test_kd_det_itself_imports_next_to_nothing():
    result = run("""
import sys
import kd_det
print(kd_det.__version__, "torch" in sys.modules, "detectron2" in sys.modules)
""")
    assert result.stdout.split() == ["0.1.0", "False", "False"], result.stderr
