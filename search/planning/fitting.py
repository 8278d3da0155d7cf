"""Methods of a study that names none: all that can be trained on its images in its epochs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from search.errors import InputError
from search.spec.study import StudySpec, corners

if TYPE_CHECKING:
    from trainables.data.splits import Data

_log = logging.getLogger("routefront.search")


def fitting(spec: StudySpec, data: Data | None = None) -> StudySpec:
    """The spec, without what of its methods cannot be, where it names none; each is logged in one line.

    Without `data` only the epochs are asked. A spec that names its methods is returned as it is: what cannot be is an
    error then. Raises `InputError` where no method is left.
    """
    if "methods" in spec.model_fields_set or not spec.methods:
        return spec
    from search.planning.creation import built_of, images_fit, phases_fit
    from trainables.registry import get_method

    kept, why = dict(spec.methods), ""
    for name in spec.methods:
        alone = spec.model_copy(update={"methods": {name: spec.methods[name]}})
        try:
            phases_fit(alone)
            if data is not None:
                images_fit(alone, data)
                for values in corners(alone.spaces()[name]):
                    built_of(get_method(name), values, data.task)
        except InputError as error:
            why = str(error).removeprefix(f"methods.{name}: ")
            _log.warning("method %s is left out: %s", name, why)
            del kept[name]
    if not kept:
        raise InputError(f"no method can be trained so: {why}")
    return spec.model_copy(update={"methods": kept}) if len(kept) < len(spec.methods) else spec
