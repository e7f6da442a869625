"""Every nemesis in a run of its own (`make chaos`): each kind of fault takes effect, and the run is right."""

from pathlib import Path

import pytest

from chaos import checkers, history
from chaos.live.runner import run
from chaos.nemesis.registry import NEMESES
from chaos.schedule import QUICK, Options, given

TRIES = 3  # of each kind: some need a store that has been written to, or a task that allocates just then
EVERY_S, LASTS_S = 1.0, 1.5


@pytest.mark.chaos
@pytest.mark.parametrize("name", NEMESES)
def test_each_kind_of_fault_takes_effect(name: str, tmp_path: Path) -> None:
    kinds = [kind for kind in NEMESES[name].kinds for _ in range(min(kind.most or TRIES, TRIES))]
    at_s = [0.5 + number * (EVERY_S + LASTS_S) for number in range(len(kinds))]
    texts = [f"{name}.{kind.name}@{at:g}-{at + LASTS_S:g}" for kind, at in zip(kinds, at_s, strict=True)]
    options = Options(1, "wordcount", (), "local-cluster[3,1,512]", at_s[-1] + LASTS_S, conf=QUICK)
    findings = run(options, tmp_path / "run", given(texts, options.rng("schedule")))
    told = "\n".join(f"{each.checker} {each.verdict} {each.says}" for each in findings)
    assert checkers.composed(findings) == checkers.TRUE, told
    faults = history.read(tmp_path / "run").faults
    if any("nothing may be mounted" in str(each.evidence.get("why")) for each in faults):
        pytest.skip("mounting a small file system takes privileges")
    effective = {each.fault.kind for each in faults if each.took_effect is not False}
    assert effective == {kind.name for kind in NEMESES[name].kinds}, told
