"""Rationales against an outside judge: does agreement in Thought Space say what a judge that read them says?

    python scripts/outside_judge.py --thought-space runs/demo/thought_space/model

Two parts; every figure stands beside its floors, fits and scores are kept under ``--work``, and the same command goes
on from them. ``reason4rec_rollouts``: 16 rationales of one prompt, each with the error of a rating model that read it;
is the one that agrees with the person's history also the one that was rewarded? Judged on the prompts that pulse-nano
never saw, by spaces fitted on other people. ``xrec``: is a written explanation found by what is known of its reader?
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from outside_judge_data import CHOICES, MASKINGS, TITLES
from outside_judge_fits import Study
from outside_judge_rollouts import rollouts
from outside_judge_xrec import xrec

from pulse_hf import artifacts
from pulse_hf.models.device import few_compiled_products

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run both parts, or one, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "hub_cards" / "reports", help="outside-judge.json goes here"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "outside-judge", help="fits and scores are kept")
    parser.add_argument("--thought-space", type=Path, help="model folder of a finished run's Thought Space")
    parser.add_argument("--part", choices=("rollouts", "xrec"), nargs="+", default=("rollouts", "xrec"))
    parser.add_argument("--choices", choices=CHOICES, nargs="+", default=("best",), help="rationales to fit on")
    parser.add_argument("--titles", choices=TITLES, nargs="+", default=TITLES, help="forms of the rollouts to judge")
    parser.add_argument("--masking", choices=MASKINGS, nargs="+", default=MASKINGS, help="of titles' words in xrec")
    parser.add_argument("--towers", choices=("shared", "two"), nargs="+", default=("shared",))
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if not given.data.is_dir():
        raise SystemExit(f"{given.data} is absent: put reason4rec_rollouts and xrec there, or give --data")
    torch.set_num_threads(given.threads)
    few_compiled_products()
    command = " ".join(["python", os.path.relpath(__file__, ROOT), *sys.argv[1:]])
    study = Study(given.data, given.work, given.seed, command)
    path = given.out / "outside-judge.json"
    report = artifacts.read_json(path) if path.exists() else {}
    for name in given.part:
        if name == "rollouts":
            report[name] = rollouts(study, given.choices, given.titles, given.thought_space)
        else:
            parts = [xrec(study, masking, given.towers, given.candidates) for masking in given.masking]
            report[name] = {"counts": parts[0]["counts"], "rows": [row for part in parts for row in part["rows"]]}
        report |= {"versions": artifacts.package_versions(), "threads": given.threads}
        given.out.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, report)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
