"""Writes the claims ledger: python -m experiments.ledger [--check]

docs/CLAIMS.md says of every claim in configs/claims.gin what the rows of the studies say of it, by the rules that
their study.gin files declared before they ran.
"""

from pathlib import Path

from absl import app, flags

from experiments import configs, start, study
from research.analysis import claims, claims_page, conclusions, results, verdicts
from research.analysis.conclusions import Judged
from research.analysis.verdicts import Finding

PAGE = configs.ROOT / "docs" / "CLAIMS.md"
SCALE = "small"  # of the committed tables; smoke claims nothing


def judged(results_dir: Path | str, scale: str = SCALE) -> tuple[Judged, ...]:
    """Every claim with its verdict, from the rows of all studies at that scale.

    Raises:
      ValueError: a config, a rule or a row that is wrong, or a scale that claims nothing; one line.
    """
    if scale in study.UNTUNED:
        raise configs.ConfigError(f"--scale={scale}: claims nothing, expected a scale such as {SCALE}")
    known = configs.load(claims.Ledger, ["configs/claims.gin"])
    folders = sorted(path.parent.name for path in configs.ROOT.glob("configs/*/study.gin"))
    findings = [finding for name in folders for finding in of_study(name, results_dir, scale)]
    return conclusions.conclude(known, findings)


def of_study(name: str, results_dir: Path | str, scale: str = SCALE) -> tuple[Finding, ...]:
    """The sub-claims that a study declares, with their verdicts; not run yet where it lacks the scale."""
    table = configs.load(study.Table, [f"configs/{name}/study.gin"])
    if not table.claims:
        return ()
    planned = study.load(
        name, scale if scale in table.seeds else min(table.seeds)
    )  # its arms are those of any scale
    return verdicts.judge(
        table.claims,
        results.load(Path(results_dir) / name / scale / "cells"),
        study=name,
        scale=scale,
        arms=(*planned.arms, *planned.points),
        seeds=table.seeds.get(scale, ()),
        fewer=planned.fewer if planned.scale == scale else {},
        varied=table.varied,
    )


def main(argv: list[str]) -> int:
    """Write the page, or compare it. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --check")
    page, arguments = Path(flags.FLAGS.page), flags.FLAGS
    try:
        text = claims_page.markdown(judged(arguments.results_dir, arguments.scale))
        if not arguments.check:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            return start.fail(
                f"{page}: not what the rows say; run python -m experiments.ledger and commit it"
            )
    except (ValueError, OSError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_bool("check", False, "Write nothing; exit with 1 where the page is out of date.")
    flags.DEFINE_string("page", str(PAGE), "The page that is written or compared.")
    flags.DEFINE_string("results_dir", str(configs.ROOT / "results"), "Folder of the result rows.")
    flags.DEFINE_string("scale", SCALE, "Scale of the rows: small or base.")
    app.run(main)
