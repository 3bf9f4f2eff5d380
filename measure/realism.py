"""Statistics of real scenes: python measure/realism.py FOLDER -> results/realism/statistics.csv.

FOLDER holds RR_SCENES.csv and the images (notebook real_scenes). Each development scene is taken at reduced resolution,
PAN registered, and replaces its row of the table. The rows of hyperspectral tiles stay as they are: their cubes are not
kept (notebook realism, `see_cube`).
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pansharp_study.study.real_scenes import load_real_pairs, registered_only  # noqa: E402
from pansharp_study.study.realism import pair_statistics  # noqa: E402

TABLE = ROOT / "results" / "realism" / "statistics.csv"
DIGITS = 4  # significant digits kept


def measure(folder: Path) -> pd.DataFrame:
    """A row for each development scene at reduced resolution."""
    rows = []
    for pair in registered_only(load_real_pairs(folder, "development")):
        if pair.resolution != "reduced":
            continue
        place = {
            "kind": "scene",
            "name": pair.name,
            "sensor": pair.sensor.name.split(":")[0],
            "acquisition": pair.acquisition,
        }
        rows.append({**place, "bands": pair.gt.shape[1], **pair_statistics(pair.gt, pair.pan)})
    return pd.DataFrame(rows)


def main():
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    old, new = pd.read_csv(TABLE), measure(args.folder)
    kept = old[~old["name"].isin(new["name"])]
    table = pd.concat([new, kept], ignore_index=True).sort_values("kind", kind="stable")
    table.to_csv(args.out, index=False, float_format=f"%.{DIGITS}g")
    print(f"{len(new)} scenes measured, {len(kept)} rows kept: {args.out}")


if __name__ == "__main__":
    main()
