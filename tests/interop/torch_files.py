"""Files of torch.save, written without torch."""

import struct
import zipfile

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def numbers(*values):
    """A tuple of numbers, each of 32 bits."""
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def array(name, size, shape, steps, *, offset=0, kind=b"FloatStorage", rebuild=REBUILD):
    """The instructions by which torch.save rebuilds an array in block `name` of `size` elements."""
    block = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(name) + text("cpu")
    block += b"J" + struct.pack("<i", size) + b"tQ"
    rest = b"J" + struct.pack("<i", offset) + numbers(*shape) + numbers(*steps)
    return rebuild + b"(" + block + rest + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR"


def dictionary(**values):
    items = b"".join(text(name) + value + b"s" for name, value in values.items())
    return b"\x80\x02" + b"ccollections\nOrderedDict\n)R" + items + b"."


def saved(path, program, blocks, *, order=b"little"):
    """A file of torch.save."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", order)
        for name, content in blocks.items():
            archive.writestr(f"model/data/{name}", content)
    return path
