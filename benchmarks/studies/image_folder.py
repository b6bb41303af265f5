"""Runs over a large folder of JPEG files: killed in the retraining and resumed; and the time that a search takes.

    python -m benchmarks.studies.image_folder --data FOLDER          # 20,000 images of 224 pixels, MobileNet-v2
    python -m benchmarks.studies.image_folder --data FOLDER --workers 2
    python -m benchmarks.studies.image_folder --data FOLDER --search # beside a folder of a tenth of the images

The images are CIFAR-10's (``FOLDER`` with its parquet files), made 256 pixels wide, in class folders.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PIXELS = 256
HELD = 1000
# Epochs done at which a run is killed: in the second of two.
KILLED = 1.35


def write_folder(folder: Path, data: str, images: int) -> Path:
    """Class folders of ``images`` training images, ``HELD`` for validation and for test. A finished one is kept."""
    from pfray.data import cifar10

    ready = folder / "ready"
    if ready.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    task = cifar10.build(data, validation_size=HELD)
    for split, own, count in (("train", task.train, images), ("val", task.validation, HELD), ("test", task.test, HELD)):
        first: Any = own.head(count)
        for number, (pixels, label) in enumerate(zip(first.inputs, first.targets.tolist(), strict=True)):
            path = folder / split / cifar10.NAMES[label] / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            enlarged(pixels).save(path, quality=85)
    ready.touch()
    return folder


def enlarged(pixels: Tensor) -> Image.Image:
    """An image ``(3, H, W)`` of uint8 as ``PIXELS`` x ``PIXELS``."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)


def experiment(images: Path, runs: Path, size: int, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"name": "imagefolder", "path": str(images), "size": size},
        "model": "mobilenet_v2",
        "teacher": {"epochs": 1, "lr": 0.05},
        "learner": {"name": "channel_pruned", "images": 50, "criterion": "lasso"},
        "target": {"macs": "0.1x"},
        "search": {"name": "uniform", "baselines": []},
        "finetune": {"epochs": 2, "lr": 0.02},
        "export": {"tflite": False},
        "storage": str(runs),
        **changes,
    }


def start(file: Path, written: dict[str, Any], *options: str) -> subprocess.Popen[bytes]:
    # JSON is YAML.
    file.write_text(json.dumps(written), encoding="utf-8")
    return subprocess.Popen([sys.executable, "-m", "pfray.run", str(file), *options], cwd=ROOT)


def killed_and_resumed(folder: Path, written: dict[str, Any]) -> None:
    """Run the experiment, kill it within the retraining's second epoch, and resume it."""
    file = folder / "killed.yaml"
    training = Path(written["storage"]) / "killed" / "training" / "compressed"
    run = start(file, written, "--force")
    while run.poll() is None and done(training / "running.json") < KILLED:
        time.sleep(1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    print(f"killed after {done(training / 'running.json'):.2f} epochs")
    start(file, written, "--resume").wait()
    print((training / "curve.jsonl").read_text(encoding="utf-8"), end="")


def done(running: Path) -> float:
    """Epochs of a training that are done, with the share of the one that goes on."""
    return json.loads(running.read_text(encoding="utf-8")).get("done", 0.0) if running.exists() else 0.0


def search_seconds(folder: Path, written: dict[str, Any]) -> float:
    """Seconds of a run's search, the calibration and the reading of its samples left out."""
    start(folder / "search.yaml", written, "--force").wait()
    seconds = json.loads((Path(written["storage"]) / "search" / "seconds.json").read_text(encoding="utf-8"))
    return float(seconds["search"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser("studies.image_folder", str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224, help="pixels of the crops")
    parser.add_argument("--workers", type=int, default=1, help="of the retraining")
    parser.add_argument("--search", action="store_true", help="time a search instead, over all images and a tenth")
    parser.add_argument("--rounds", type=int, default=2, help="searches of each")
    parser.add_argument("--trials", type=int, default=12, help="of each search")
    parser.add_argument("--folder", type=Path, default=Path("runs/image_folder"), help="of the images and the runs")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    whole = write_folder(folder / f"images_{options.images}", options.data, options.images)
    if not options.search:
        resources = {"workers": options.workers}
        killed_and_resumed(folder, experiment(whole, folder / "runs", options.size, resources=resources))
        return 0
    tenth = write_folder(folder / f"images_{options.images // 10}", options.data, options.images // 10)
    weights = folder / "runs" / "search" / "teacher.safetensors"
    kept = folder / "teacher.safetensors"
    short = {"finetune": {"epochs": 0}, "search": {"name": "random", "trials": options.trials, "baselines": []}}
    found: dict[str, list[float]] = {"tenth": [], "whole": []}
    for _ in range(options.rounds):
        for name, images in (("tenth", tenth), ("whole", whole)):
            model = {"name": "mobilenet_v2", **({"weights": str(kept)} if kept.exists() else {})}
            found[name].append(search_seconds(folder, experiment(
                images, folder / "runs", options.size, **short, model=model, target={"macs": "0.5x"},
            )))  # fmt: skip
            if not kept.exists():
                shutil.copy(weights, kept)
    print(json.dumps({name: [round(each, 1) for each in seconds] for name, seconds in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
