"""The verb that merges checkpoints: merge."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmx.cli.verb import add_verb

_SUMMARY = "merge checkpoints of one architecture, tensor by tensor"
_DESCRIPTION = """Merge checkpoints of one architecture, tensor by tensor. The methods:
  mean         weighted mean: model soup, checkpoint average, WARM (reward models)   --weights, --normalize
  ema          exponential mean along a run, oldest first                            --decay
  liti         (1 - eta) * base + eta * model                                        --base, --eta, --layer-weights
  slerp        spherical interpolation of task vectors                               --base, --weights, --by, --antiparallel
  warp         slerp, then liti towards the base: an iteration of WARP               --base, --eta, --by, --antiparallel
  arithmetic   base + sum of weight * task vector                                    --base, --weights
  ties         trim, elect signs, mean of those that agree                           --base, --density, --scale, --weights, --by
  dare         random share of each task vector, rescaled, then summed               --base, --density, --seed, --scale,
                                                                                     --weights, --no-rescale, --elect"""
_OPTIONS = {
    "mean": {"weights", "layer_weights", "normalize"},
    "ema": {"decay"},
    "liti": {"eta", "layer_weights"},
    "slerp": {"weights", "layer_weights", "by", "antiparallel"},
    "warp": {"weights", "layer_weights", "eta", "by", "antiparallel"},
    "arithmetic": {"weights", "layer_weights"},
    "ties": {"weights", "layer_weights", "density", "scale", "by"},
    "dare": {"weights", "layer_weights", "density", "scale", "seed", "rescale", "combine_by"},
}
_REQUIRED = {"ema": "decay", "liti": "eta", "dare": "density"}
_FLAGS = {"rescale": "--no-rescale", "combine_by": "--elect"}


def add(verbs: Any) -> None:
    """Adds the verb to the parser's subparsers."""
    parser = add_verb(
        verbs, "merge", _merge, _SUMMARY, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="lmx artifacts or Hugging Face directories, in order")
    parser.add_argument("--out", metavar="DST", required=True, help="what to write; must not exist")
    parser.add_argument("--method", choices=tuple(_OPTIONS), required=True, help="see above")
    parser.add_argument("--base", metavar="MODEL", help="the checkpoint that all were trained from")
    parser.add_argument("--weights", metavar="W,W,...", help="one a model (mean, slerp: they sum to 1; default: all alike)")
    parser.add_argument(
        "--layer-weights",
        metavar="LAYERS=W,W,...",
        action="append",
        help="other weights for some layers (0-3=.9,.1) or a table (embed=1,0; final_norm, head); for liti one eta; repeatable",
    )
    parser.add_argument("--normalize", action="store_const", const=True, help="divide weights by their sum")
    parser.add_argument("--decay", type=float, help="ema: weight of all that came before, in [0, 1)")
    parser.add_argument("--eta", type=float, help="liti, warp: 0 is the base, 1 the merged model (warp: default 0.3)")
    parser.add_argument("--by", choices=("tensor", "layer", "tree"), help="what angles (default: layer) or shares (tree) are of")
    parser.add_argument("--antiparallel", choices=("raise", "lerp"), help="where task vectors are opposite (default: raise)")
    parser.add_argument("--density", type=float, help="share of a task vector that is kept (ties: default 0.2)")
    parser.add_argument("--scale", type=float, help="factor on the merged task vector (default: 1)")
    parser.add_argument("--seed", type=int, help="dare: of the random masks (default: 0)")
    parser.add_argument(
        "--no-rescale", dest="rescale", action="store_const", const=False, help="dare: do not divide by the density"
    )
    parser.add_argument(
        "--elect", dest="combine_by", action="store_const", const="elect", help="dare: merge by the sign election of TIES"
    )
    parser.add_argument("--to", choices=("lmx", "hf", "gguf"), help="kind of DST (default: as the first model)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="numbers to write (default: as the first model)"
    )


def _merge(options: argparse.Namespace) -> None:
    from lmx.convert import merge
    from lmx.core import logging

    logging.setup()
    report = merge.merge_checkpoints(
        options.models,
        options.out,
        _method(options),
        base=options.base,
        to=options.to,
        dtype=options.dtype,
        show_progress=sys.stderr.isatty(),
    )
    print("\n".join(report.lines()))


def _method(options: argparse.Namespace) -> Any:
    """The method with the options that were given.

    Raises:
      ValueError: an option that the method does not have, or one missing that it needs.
    """
    from lmx import merging

    known = set().union(*_OPTIONS.values())
    given = {name: getattr(options, name) for name in sorted(known) if getattr(options, name) is not None}
    if extra := given.keys() - _OPTIONS[options.method]:
        name = min(extra)
        raise ValueError(
            f"--method {options.method} has no use for {_FLAGS.get(name, '--' + name.replace('_', '-'))}; leave it out"
        )
    needed = _REQUIRED.get(options.method)
    if needed is not None and needed not in given:
        raise ValueError(f"--method {options.method} needs --{needed}")
    groups = _groups(given.pop("layer_weights", []))
    if options.method == "liti":
        return merging.Liti(eta=given["eta"], groups=_single(groups))
    if "weights" in given or groups:
        default = _numbers(given.pop("weights"), "--weights") if "weights" in given else None
        given["weights"] = merging.Weights(default=default, groups=groups)
    if options.method == "warp":
        given.setdefault("eta", 0.3)
    makers: dict[str, Callable[..., Any]] = {
        "mean": merging.Mean,
        "ema": merging.Ema,
        "slerp": merging.Slerp,
        "warp": merging.Slerp,
        "arithmetic": merging.Arithmetic,
        "ties": merging.Ties,
        "dare": merging.Dare,
    }
    return makers[options.method](**given)


def _groups(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Group of parts -> weights, from "0-3=.9,.1" and "embed=1,0"."""
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        layers = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
        if not name or not numbers:
            raise ValueError(f"--layer-weights {text!r} must read LAYERS=W,W,..., such as 0-3=.9,.1 or embed=1,0")
        names = [name] if layers is None else [str(i) for i in range(int(layers[1]), int(layers[2] or layers[1]) + 1)]
        if not names:
            raise ValueError(f"--layer-weights {text!r} counts its layers backwards; write the smaller number first")
        for group in names:
            if group in found:
                raise ValueError(f"--layer-weights gives {group!r} weights twice")
            found[group] = _numbers(numbers, "--layer-weights")
    return found


def _single(groups: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    for group, values in groups.items():
        if len(values) != 1:
            raise ValueError(f"--method liti takes one eta for {group!r}, not {len(values)} numbers")
    return {group: values[0] for group, values in groups.items()}


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas between them, such as 0.7,0.3; found {text!r}") from None
