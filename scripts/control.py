"""Does the gain of PULSE follow the strength of the motives?

    python scripts/control.py --out runs/control --users 2400

Runs the whole road of the demo preset on worlds whose motive knob is 0, 1/4, 1/2 and 1 of the default,
everything else the same, and compares ``pulse`` and ``pulse-fused`` with the strongest baseline of each
world. Synthetic: it shows the mechanism, not a result on real data.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import package_versions, read_json, write_json
from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.evaluation.comparisons import against_the_strongest, strongest_baseline
from pulse_hf.models.device import few_compiled_products
from pulse_hf.pipeline import run_road
from pulse_hf.presets import preset_named

KNOBS = (0.0, 0.25, 0.5, 1.0)
SHOWN = ("pulse", "pulse-fused")


def gains(report: dict[str, Any]) -> dict[str, Any]:
    """Both systems of ours against the strongest baseline of one report."""
    systems = report["systems"]
    tested = {row["system"]: row for row in against_the_strongest(report)}
    return {
        "strongest": strongest_baseline(report),
        "hr@1": {name: systems[name]["hr@1"]["value"] for name in systems},
        **{name: {key: tested[name][key] for key in ("difference", "low", "high", "p", "p_holm")} for name in SHOWN},
    }


def main() -> None:
    """Run the four worlds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/control"))
    parser.add_argument("--users", type=int, default=2400)
    parser.add_argument("--test-users", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    few_compiled_products()
    rows = {}
    for knob in KNOBS:
        preset = preset_named("demo")
        shop = replace(WorldSettings(), num_users=arguments.users, motive=WorldSettings().motive * knob)
        candidates = replace(preset.candidates, max_test_users=arguments.test_users)
        settings = replace(
            preset,
            seed=arguments.seed,
            world=shop,
            candidates=candidates,
            recommender=replace(preset.recommender, systems=("pulse", "slm+sft")),
            evaluate=replace(preset.evaluate, worth_of_a_reason=False),
        )
        folder = run_road(arguments.out / f"motive-{knob:g}", settings)
        rows[f"{knob:g}"] = gains(read_json(folder / "report.json"))
    print("synthetic worlds; gain in HR@1 over the strongest baseline, 95 % interval\n")
    print("| motive knob | strongest baseline | pulse | pulse-fused |\n|---|---|---|---|")
    for knob_name, row in rows.items():
        cells = [
            f"{row[name]['difference']:+.3f} [{row[name]['low']:+.3f}, {row[name]['high']:+.3f}]" for name in SHOWN
        ]
        print(f"| {knob_name} | {row['strongest']} {row['hr@1'][row['strongest']]:.3f} | {' | '.join(cells)} |")
    kept = {
        "command": f"python scripts/control.py --users {arguments.users} --test-users {arguments.test_users} "
        f"--seed {arguments.seed}",
        "seed": arguments.seed,
        "users": arguments.test_users,
        "worlds": rows,
        "versions": package_versions(),
    }
    write_json(arguments.out / "control.json", kept)


if __name__ == "__main__":
    main()
