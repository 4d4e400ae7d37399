"""What a method asks for is what it gets: nothing else, or a clear refusal before the run."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import clipautt.adaptation
from clipautt.adaptation import method as seam
from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig, Method, Session, check_needs, find_method, method_names
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.zero_shot import ZeroShot
from clipautt.adaptation.source import Need
from tests.support.fakes import fake_clip, fake_source


class Greedy(ZeroShot):
    """Uses more than it asks for."""

    name: ClassVar[str] = "greedy"

    def predict(self, state: Any, session: Session, clip: Any) -> Any:
        session.source.views_of([clip])
        return super().predict(state, session, clip)


class Wanting(ZeroShot):
    """Asks for what a test says."""

    name: ClassVar[str] = "wanting"
    wanted: ClassVar[frozenset[Need]] = frozenset()

    @property
    def needs(self) -> frozenset[Need]:
        return self.wanted


def wanting(*needs: Need) -> AdaptConfig:
    class One(Wanting):
        wanted: ClassVar[frozenset[Need]] = frozenset(needs)

    return AdaptConfig(One())


def test_a_method_that_uses_what_it_did_not_ask_for_is_found() -> None:
    with pytest.raises(RuntimeError, match=r"uses 'views' without listing it in its `needs` \(\['class_text'\]\)"):
        adapt(fake_source(), [fake_clip()], AdaptConfig(Greedy()))


@pytest.mark.parametrize("need", ["views", "class_text", "text_tower"])
def test_what_was_asked_for_is_given_and_the_rest_is_not(need: Need) -> None:
    source = fake_source()
    limited = Session.open(source, wanting(need)).source
    uses = {
        "views": lambda one: one.views_of([fake_clip()]),
        "class_text": lambda one: one.class_text(),
        "text_tower": lambda one: one.prompt_reader(),
    }
    for name, use in uses.items():
        if name == need:
            use(limited)
        else:
            with pytest.raises(RuntimeError, match=f"uses '{name}'"):
                use(limited)
        use(source)  # the source itself is not limited
        use(limited.limited_to(None))


def test_needs_that_cannot_be_met_are_refused_with_a_way_out() -> None:
    spec = fake_source().checkpoint.spec
    with pytest.raises(ValueError, match="needs pixels, but the feature store holds frame features"):
        check_needs(spec, wanting("pixels"))
    with pytest.raises(ValueError, match=r"needs class descriptions, .* such as adapt=clip_au"):
        check_needs(replace(spec, descriptions=()), AdaptConfig(ZeroShot()))
    with pytest.raises(ValueError, match=r"tunes context tokens, .* take adapt\.method\.tune=feature"):
        check_needs(replace(spec, context_tokens=0), AdaptConfig(ClipAUTT(objective="entropy")))
    with pytest.raises(ValueError, match=r"protocol is 'online'; take adapt\.protocol=per_subject"):
        check_needs(spec, replace(wanting("subject_set"), protocol="online"))
    check_needs(spec, wanting("subject_set"))
    check_needs(replace(spec, context_tokens=0), AdaptConfig(ClipAUTT(objective="entropy", tune="feature")))
    check_needs(replace(spec, context_tokens=0, descriptions=()), AdaptConfig(ClipAUTT()))


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_one_module_that_the_registry_finds(name: str) -> None:
    method = find_method(name)
    assert method.name == name and isinstance(method(), Method)
    assert method.fidelity in ("exact", "adapted", "variant") and method.deviations.endswith(".")
    config = AdaptConfig(method())
    assert AdaptConfig.from_facts(config.facts) == config
    assert config.name and len(set(config.method.title(config))) == len(config.method.title(config))


def test_an_unknown_method_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="method 'tent' is unknown; known methods are clip_autt, t3a, tda, zero_shot"):
        find_method("tent")


@pytest.mark.parametrize("name", method_names())
def test_every_method_predicts_from_its_start_and_from_its_saved_state(name: str) -> None:
    method = find_method(name)()
    config = AdaptConfig(method, protocol="online")
    session = Session.open(fake_source(), config)
    state, clips = method.start(session, None), [fake_clip(f"c{i}", seed=i) for i in range(3)]
    for clip in clips:
        _, state = method.step(state, session, clip)
    again = method.restore(method.save(state), session, None)
    for clip in clips:
        one, other = (method.predict(known, session, clip).logits for known in (state, again))
        assert one.equal(other)


def test_driver_predictor_checks_rows_and_reports_know_no_method_by_name() -> None:
    root = Path(inspect.getfile(clipautt)).parents[1]
    files = [
        Path(inspect.getfile(seam)),
        root / "clipautt/adaptation/driver.py",
        root / "clipautt/adaptation/agreement.py",
    ]
    files += [root / "clipautt/adaptation/personalization.py", *(root / "ray_jobs/adapt").glob("*.py")]
    files += [*(root / "clipautt/evaluation").rglob("*.py"), root / "ray_jobs/report/job.py"]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not texts & set(method_names()), f"{path.relative_to(root)} names a method"
