"""Whether a mix fits what a bank holds: places in the model, and planes with the tasks they need.

A plane is elected for one set of tasks: under other tasks, or other contents of the same names,
the weights that it keeps mean nothing. A mix must therefore use a plane with its whole set.
"""

from collections.abc import Iterable, Mapping

from taskmix_composer.bank.manifest import Manifest
from taskmix_composer.bank.records import Derivation, EntryRecord
from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix, Term, layer_of


def check_places(mix: Mix, tensors: Mapping[str, object]) -> None:
    """Refuse a mix that names a layer or tensor which the base lacks."""
    layers = {layer_of(tensor) for tensor in tensors}
    for term in mix.terms:
        for layer, _ in term.by_layer:
            if layer not in layers:
                raise InvalidMixError(f"{term.task}: the base has no layer {layer}; leave it out")
        for tensor, _ in term.by_tensor:
            if tensor not in tensors:
                raise InvalidMixError(
                    f"{term.task}: the base stores no tensor {tensor!r}; `bank inspect --json` "
                    "lists the names"
                )


def check_bounds(mix: Mix, manifest: Manifest) -> None:
    """Refuse a plane that is used with another set of tasks than it was elected for."""
    for derivation, planes in _planes_by_origin(mix, manifest):
        terms = [term for term in mix.terms if planes & _planes(term)]
        covered = {pair for term in terms for pair in _covered(term.task, manifest.entries)}
        tasks, name = {task for task, _ in covered}, min(planes)
        if tasks != derivation.bound.keys():
            raise InvalidMixError(
                f"plane {name!r} was elected for the tasks {_listed(derivation.bound)} and this "
                f"mix uses it for {_listed(tasks)}; use it with its own set, or run `bank merge` "
                "for yours"
            )
        changed = [task for task, digest in covered if digest not in ("", derivation.bound[task])]
        if changed:
            raise InvalidMixError(
                f"plane {name!r} was elected for another fine-tune under the name "
                f"{min(changed)!r}; run `bank merge` again"
            )


def _planes_by_origin(mix: Mix, manifest: Manifest) -> Iterable[tuple[Derivation, set[str]]]:
    """The mix's planes, those of one election together."""
    origins: dict[str, tuple[Derivation, set[str]]] = {}
    for name in mix.planes:
        derivation = manifest.planes[name].derivation
        origins.setdefault(derivation.digest, (derivation, set()))[1].add(name)
    return origins.values()


def _planes(term: Term) -> set[str]:
    return {mask.removeprefix("!") for mask in term.masks}


def _covered(task: str, entries: Mapping[str, EntryRecord]) -> Iterable[tuple[str, str]]:
    """The tasks that an entry speaks for, and their digests: itself, or those it was made of.

    A task that is not in the bank any more has no digest; who still holds it must compare it.
    """
    if task not in entries:
        return [(task, "")]
    provenance = entries[task].provenance
    if isinstance(provenance, Derivation):
        return provenance.bound.items()
    return [(task, provenance.digest)]


def _listed(tasks: Iterable[str]) -> str:
    return ", ".join(sorted(tasks))
