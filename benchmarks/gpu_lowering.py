"""Lowers programs for a GPU machine that has JAX but no TensorFlow.

They take weights as arguments and hold none, so that they are small.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator

from benchmarks import gpu_script
from benchmarks.gpu_programs import (
    TINY,
    Argument,
    Program,
    draw_weights,
    drawn,
    network,
    programs,
    programs_of,
    tensor_float_32,
    weight,
)

# Numbers of a constant that is no weight, such as one vector of the outputs.
FEW = 1000


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program as XLA takes it.

    Attributes:
        run: The function, which can be called.
        code: A serialized `HloModuleProto`.
        arguments: All that it takes, in order: those of the program, then the variables.
        variables: The variables, in that order.
    """

    run: Callable
    code: bytes
    arguments: tuple[Argument, ...]
    variables: tuple


def lowered(program: Program) -> Lowered:
    """Lowers a program, for any device.

    Raises:
        ValueError: If it does not take what the function takes, or holds weights.
    """
    function, concrete = program.traced()
    code = function.experimental_get_compiler_ir(*program.specs)(stage="hlo_serialized")
    of_handle = {id(variable.handle): variable for variable in concrete.variables}
    # A tensor of values that is captured is a weight that has no variable.
    values = [t for t in concrete.captured_inputs if id(t) not in of_handle]
    if values:
        raise ValueError(f"{program.what} captures values: {values}; expected variables alone.")
    variables = tuple(of_handle[id(handle)] for handle in concrete.captured_inputs)
    arguments = (*program.arguments, *(weight(variable) for variable in variables))
    module = parsed(code)
    taken = parameters(module)
    if [(a.shape, a.dtype) for a in arguments] != taken:
        raise ValueError(f"{program.what} takes {taken}, expected {arguments}.")
    held = [shape for shape in constants(module) if math.prod(shape) > FEW]
    # Bounds of pixels have the shape of an image, or of a padded one.
    image = program.arguments[0].shape
    held = [s for s in held if (len(s), s[0], s[-1]) != (len(image), 1, image[-1])]
    if held:
        raise ValueError(f"{program.what} holds constants of {held}; expected no weights.")
    return Lowered(concrete, code, arguments, variables)


def parsed(code: bytes):
    """Returns the module of a lowered program."""
    from tensorflow.compiler.xla.service import hlo_pb2

    return hlo_pb2.HloModuleProto.FromString(code)


def parameters(module) -> list[tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of what a program takes, in order."""
    dtypes = {"F32": "float32", "F64": "float64", "S32": "int32"}
    shapes = module.host_program_shape.parameters
    kinds = type(shapes[0]).DESCRIPTOR.fields_by_name["element_type"].enum_type.values_by_number
    return [(tuple(s.dimensions), dtypes[kinds[s.element_type].name]) for s in shapes]


def instructions(module) -> Iterator:
    """Returns the instructions of all computations of a program."""
    for computation in module.computations:
        yield from computation.instructions


def constants(module) -> list[tuple[int, ...]]:
    """Returns the shapes of the constants that a program holds."""
    return [tuple(i.shape.dimensions) for i in instructions(module) if i.opcode == "constant"]


def write_program(
    program: Program, folder: pathlib.Path, tf32: bool, with_values: bool = False
) -> dict:
    """Writes a program; returns its entry of the manifest.

    Args:
        program: The program.
        folder: Where it goes.
        tf32: Whether it rounds factors to TF32.
        with_values: Write arguments and results beside it.
    """
    import numpy as np

    made = lowered(program)
    what = program.what.replace(" ", "_").replace(",", "")
    file = f"{program.model}-{what}-{program.batch}x{program.vectors}.hlo"
    (folder / file).write_bytes(made.code)
    print(f"{file}: {len(made.code) / 2**10:.0f} KiB", flush=True)
    values = None
    if with_values:
        values = f"{file}.npz"
        given = [drawn(argument, i) for i, argument in enumerate(program.arguments)]
        results = made.run(*given)
        results = results if isinstance(results, list | tuple) else [results]
        everything = [*given, *(variable.read_value() for variable in made.variables)]
        stored = {f"argument_{i}": tensor.numpy() for i, tensor in enumerate(everything)}
        stored |= {f"output_{i}": tensor.numpy() for i, tensor in enumerate(results)}
        np.savez(folder / values, **stored)
    arguments = [dataclasses.asdict(argument) for argument in made.arguments]
    return {**program.row(tf32), "file": file, "values": values, "arguments": arguments}


def write_folder(folder: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Writes the programs of all networks, those of the tiny one, and the script that runs them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = network(TINY, 0)
    draw_weights(model)
    # Exact up to the order of sums, on every device.
    with tensor_float_32(False):
        entries = [
            write_program(program, folder, tf32=False, with_values=True)
            for program in programs(model, TINY, 2, 3, 2, arguments.method)
        ]
    with tensor_float_32(arguments.tf32):
        of_networks = [
            [
                write_program(program, folder, arguments.tf32)
                for program in programs_of(name, arguments)
            ]
            for name in arguments.model
        ]
    # What counts most comes first, of every network, in case that the time is over.
    for same in zip(*of_networks, strict=True):
        entries += same
    settings = {"models": arguments.model, "batch": arguments.batch, "size": arguments.size}
    manifest = {"settings": settings | {"tf32": arguments.tf32}, "programs": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    script = pathlib.Path(gpu_script.__file__)
    shutil.copy(script, folder)
    total = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{len(entries)} programs, {total:.1f} MiB; on the other machine: python {script.name}")
